import functools
import http.server
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cpt_launcher import stage
from cpt_launcher.dataset import Copy
from cpt_launcher.errors import DataError, StorageError

ENTRY = {"mine": {"file_name": "/storage/mine.jsonl"}}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "a"}\n')
    return path


@pytest.fixture
def server(source: Path) -> Iterator[str]:
    """A web server on loopback that serves the corpus; yields its URL."""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=source.parent)) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}/corpus.jsonl"
        web.shutdown()
        thread.join()


def outcomes(storage: Path, *copies: Copy, refetch: bool = True) -> list[str]:
    seen: list[stage.Staged] = []
    staged = stage.stage(copies, ENTRY, storage, report=seen.append, refetch=refetch)
    assert tuple(seen) == staged
    return [item.outcome for item in staged]


def test_created_identical_replaced(storage: Path, source: Path) -> None:
    copy = Copy(str(source), storage / "deep" / "c.jsonl")
    assert outcomes(storage, copy) == ["created", "created"]
    before = copy.target.stat()
    assert outcomes(storage, copy) == ["identical", "identical"]
    assert copy.target.stat().st_mtime_ns == before.st_mtime_ns
    source.write_text('{"text": "b"}\n')
    assert outcomes(storage, copy) == ["replaced", "identical"]
    assert copy.target.read_text() == '{"text": "b"}\n'


def test_others_can_read_what_was_staged(storage: Path, source: Path) -> None:
    before = os.umask(0o022)
    try:
        outcomes(storage, Copy(str(source), storage / "c.jsonl"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((storage / "c.jsonl").stat().st_mode) == 0o644


def test_from_a_web_server(storage: Path, server: str, source: Path) -> None:
    copy = Copy(server, storage / "c.jsonl")
    assert outcomes(storage, copy) == ["created", "created"]
    assert copy.target.read_bytes() == source.read_bytes()
    source.write_text('{"text": "new"}\n')
    assert outcomes(storage, copy, refetch=False) == ["identical", "identical"]
    assert outcomes(storage, copy) == ["replaced", "identical"]


@pytest.mark.parametrize("missing", ["{folder}/absent", "http://127.0.0.1:9/absent", "nosuch://x/y"])
def test_an_unreadable_source_leaves_the_old_file(storage: Path, tmp_path: Path, missing: str) -> None:
    target = storage / "c.jsonl"
    target.write_text("old")
    with pytest.raises(DataError, match="cannot read the data"):
        outcomes(storage, Copy(missing.format(folder=tmp_path), target))
    assert target.read_text() == "old"
    assert [path.name for path in storage.iterdir()] == ["c.jsonl"]


def test_other_peoples_entries_survive(storage: Path) -> None:
    theirs = {"theirs": {"file_name": "/t.jsonl", "columns": {"prompt": "body"}}}
    (storage / "dataset_info.json").write_text(json.dumps(theirs))
    assert outcomes(storage) == ["replaced"]
    assert json.loads((storage / "dataset_info.json").read_text()) == {**theirs, **ENTRY}


def test_an_absent_storage_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the storage is not there"):
        outcomes(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_storage_that_cannot_be_written(storage: Path, source: Path) -> None:
    (storage / "c.jsonl").mkdir()  # a folder where the file is to go: rename fails also for root
    with pytest.raises(StorageError, match="cannot write"):
        outcomes(storage, Copy(str(source), storage / "c.jsonl"))
    assert [path.name for path in storage.iterdir()] == ["c.jsonl"]


def test_set_aside_keeps_the_content(storage: Path) -> None:
    (storage / "output").mkdir()
    (storage / "output" / "x").write_text("kept")
    aside = stage.set_aside(storage / "output")
    assert (aside / "x").read_text() == "kept"
    assert not (storage / "output").exists()
