"""`.cpt/manifest.json` on the storage: what was staged from where, and what was seen in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from cpt_launcher import disk, jsontext
from cpt_launcher.errors import Problem, StorageError
from cpt_launcher.layout import Layout


@dataclass(frozen=True)
class Record:
    """One staged file. `bytes`, `mtime_ns` and `sha256` are the target's; `stamp` is the source's version, `column` the
    one that was checked; `tokens` is known only where a tokenizer counted them, `target_stamp` only for objects. `rows`
    is how many records the target has: `documents` and, but where text files without text were left out, `empty`.
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
    rows: int | None = None

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
    place = str(layout.manifest)
    try:
        whole: Any = jsontext.load(layout.manifest)
        return {path: _record(record) for path, record in whole["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        hint = f"move it aside, and everything is compared and recorded again: mv {quote(place)} {quote(place)}.bad"
        raise StorageError(Problem(f"cannot read the manifest: {why}", place, hint)) from None


def _record(value: Any) -> Record:
    record = Record(**value)
    texts, counts = (record.source, record.sha256, record.staged), (record.bytes, record.mtime_ns, record.skipped)
    maybe = (record.documents, record.text_bytes, record.tokens, record.rows)
    if not all(isinstance(text, str) for text in texts) or not all(
        jsontext.is_count(count) for count in (*counts, record.empty, *(count for count in maybe if count is not None))
    ):
        raise ValueError(f"a record of {record.source!r:.60} holds what cannot be")
    return record


def add(layout: Layout, records: Mapping[str, Record], removed: Sequence[str] = ()) -> None:
    """Record files, under the storage's lock: two stagings at once lose nothing of each other."""
    if records or removed:
        with disk.lock(layout.lock):
            known = {**read(layout), **records}
            files = {path: asdict(record) for path, record in sorted(known.items()) if path not in removed}
            disk.write_json(layout.manifest, {"version": 1, "files": files})
