"""`.cpt/manifest.json` on the storage: what was staged from where, and what was seen in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cpt_launcher import disk
from cpt_launcher.errors import Problem, StorageError
from cpt_launcher.layout import Layout


@dataclass(frozen=True)
class Record:
    """One staged file. `bytes`, `mtime_ns` and `sha256` are the target's; `stamp` is the source's version, `column` the
    one that was checked; `tokens` is known only where a tokenizer counted them, `target_stamp` only for objects.
    """

    source: str
    stamp: str | None
    bytes: int
    mtime_ns: int
    sha256: str
    staged: str
    documents: int | None = None
    text_bytes: int | None = None
    skipped: int = 0
    tokens: int | None = None
    target_stamp: str | None = None
    column: str | None = None
    empty: int = 0

    def matches(self, target: Path) -> bool:
        """Whether the target is, by size and time, the file that was recorded."""
        if not target.is_file():
            return False
        now = target.stat()
        return (now.st_size, now.st_mtime_ns) == (self.bytes, self.mtime_ns)


def read(layout: Layout) -> dict[str, Record]:
    """Records by path relative to the storage.

    Raises:
        StorageError: the manifest is there and cannot be read.
    """
    if not layout.manifest.is_file():
        return {}
    try:
        files = json.loads(layout.manifest.read_text(encoding="utf-8"))["files"]
        return {path: Record(**record) for path, record in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "move it aside; everything is then compared and recorded again"
        raise StorageError(Problem(f"cannot read the manifest: {error}", str(layout.manifest), hint)) from None


def add(layout: Layout, records: Mapping[str, Record], removed: Sequence[str] = ()) -> None:
    """Record files, under the storage's lock: two stagings at once lose nothing of each other."""
    if records or removed:
        with disk.lock(layout.lock):
            known = {**read(layout), **records}
            files = {path: asdict(record) for path, record in sorted(known.items()) if path not in removed}
            disk.write_json(layout.manifest, {"version": 1, "files": files})
