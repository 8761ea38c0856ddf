"""A manifest that others may have written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from cpt_launcher.errors import StorageError
from cpt_launcher.layout import Layout
from cpt_launcher.staging import manifest

RECORD = manifest.Record("s", None, 1, 2, "ab", "2026")
BAD: dict[str, Callable[[Path], object]] = {
    "deep": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[]"),
    "no files": lambda path: path.write_text("{}"),
    "files are a list": lambda path: path.write_text('{"files": []}'),
    "binary": lambda path: path.write_bytes(b"\xff\x00"),
    "a pipe": lambda path: os.mkfifo(path),
    "a record is a list": lambda path: path.write_text('{"files": {"a": []}}'),
    "bytes are text": lambda path: path.write_text(json.dumps({"files": {"a": {**asdict(RECORD), "bytes": "x"}}})),
    "documents are text": lambda path: path.write_text(
        json.dumps({"files": {"a": {**asdict(RECORD), "documents": "x"}}})
    ),
    "no source": lambda path: path.write_text(json.dumps({"files": {"a": {**asdict(RECORD), "source": None}}})),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_manifest_ends_in_a_message(tmp_path: Path, kind: str) -> None:
    layout = Layout(tmp_path, "")
    layout.manifest.parent.mkdir()
    BAD[kind](layout.manifest)
    with pytest.raises(StorageError, match="cannot read the manifest: ") as caught:
        manifest.read(layout)
    assert caught.value.problems[0].hint.endswith(f"mv {layout.manifest} {layout.manifest}.bad")


def test_a_good_one_is_read(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "")
    assert manifest.read(layout) == {}
    manifest.add(layout, {"a": RECORD})
    assert manifest.read(layout) == {"a": RECORD}
