"""The only module that writes: files appear on the storage whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Literal

from cpt_launcher import dataset
from cpt_launcher.dataset import Copy
from cpt_launcher.errors import DataError, Problem, StorageError
from cpt_launcher.layout import Layout

Outcome = Literal["created", "identical", "replaced"]
CHUNK = 1 << 20


@dataclass(frozen=True)
class Staged:
    """What became of one file: `size` in bytes."""

    path: str
    outcome: Outcome
    size: int
    source: str


def stage(
    copies: Sequence[Copy],
    entries: Mapping[str, Mapping[str, object]],
    storage: Path,
    *,
    report: Callable[[Staged], None],
    refetch: bool = True,
) -> tuple[Staged, ...]:
    """Put files and registry entries on the storage.

    Args:
        report: called after each file.
        refetch: fetch remote files again even where they are on the storage already.

    Raises:
        DataError: a source cannot be read.
        StorageError: the storage is absent, not writable or full.
    """
    require_storage(storage)
    done = []
    for copy in copies:
        kept = _kept(copy) if not refetch else None
        staged = kept or _copy(copy)
        report(staged)
        done.append(staged)
    if entries:
        staged = _merge_registry(Layout(storage, ""), entries)
        report(staged)
        done.append(staged)
    return tuple(done)


def require_storage(storage: Path) -> None:
    """Check that the storage is there and can be written to.

    Raises:
        StorageError: it is absent, not a folder, or not writable.
    """
    if not storage.is_dir():
        hint = f"is it mounted? If it is to be a plain folder: mkdir -p {storage}"
        raise StorageError(Problem("the storage is not there", str(storage), hint))
    with _storage_errors(storage), tempfile.TemporaryFile(dir=storage):
        pass


def write_text(path: Path, text: str) -> Outcome:
    """Write a text file by rename; an identical one is left untouched.

    Raises:
        StorageError: it cannot be written.
    """
    data = text.encode("utf-8")
    with _storage_errors(path):
        before = path.read_bytes() if path.is_file() else None
        if before == data:
            return "identical"
        with _part_of(path) as part:
            part.file.write(data)
            part.publish()
    return "created" if before is None else "replaced"


def set_aside(path: Path) -> Path:
    """Rename a file or folder to a dated name beside it, and return that name."""
    aside = path.with_name(f"{path.name}.{datetime.now(timezone.utc):%Y%m%d-%H%M%S}")
    with _storage_errors(path):
        path.rename(aside)
    return aside


def append_to(path: Path) -> IO[str]:
    """Open a log for appending, its folder made as needed; lines reach the file as they are written.

    Raises:
        StorageError: it cannot be opened.
    """
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8", buffering=1)


def _kept(copy: Copy) -> Staged | None:
    if copy.is_remote and copy.target.is_file():
        return Staged(str(copy.target), "identical", copy.target.stat().st_size, copy.source)
    return None


def _copy(copy: Copy) -> Staged:
    """Copy one file, remote or local; one of the same bytes is left untouched."""
    with _storage_errors(copy.target):
        before = _digest(copy.target) if copy.target.is_file() else None
        with _part_of(copy.target) as part:
            size, digest = _transfer(copy.source, part.file)
            if digest != before:
                part.publish()
    if digest == before:
        return Staged(str(copy.target), "identical", size, copy.source)
    return Staged(str(copy.target), "replaced" if before else "created", size, copy.source)


@dataclass(frozen=True)
class _Part:
    """A new file beside its target; `publish` gives it the target's name."""

    file: IO[bytes]
    path: Path
    target: Path

    def publish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.path.chmod(0o666 & ~_umask())  # mkstemp made it private; others' workers read it too
        self.path.replace(self.target)


@contextlib.contextmanager
def _part_of(target: Path) -> Iterator[_Part]:
    """A file that becomes `target` if published and is gone otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield _Part(file, Path(name), target)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _transfer(source: str, target: IO[bytes]) -> tuple[int, str]:
    """Copy all bytes of a path or URL; returns their number and sha256."""
    digest, size = hashlib.sha256(), 0
    with _open(source) as stream:
        while chunk := _read(stream, source):
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
    return size, digest.hexdigest()


def _open(source: str) -> IO[bytes]:
    import fsspec  # not at the top: it brings the network libraries with it

    try:
        opened: IO[bytes] = fsspec.open(source, "rb").open()
    except (OSError, ValueError, ImportError) as error:  # ImportError: s3fs, gcsfs and others are extras
        raise _unreadable(source, error) from None
    return opened


def _read(stream: IO[bytes], source: str) -> bytes:
    try:
        return stream.read(CHUNK)
    except OSError as error:
        raise _unreadable(source, error) from None


def _unreadable(source: str, error: BaseException) -> DataError:
    while error.__cause__ is not None:  # fsspec reports a dead server as a missing file, the reason behind it
        error = error.__cause__
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return DataError(Problem(f"cannot read the data ({reason})", source, "check the entry's source and the network"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _merge_registry(layout: Layout, entries: Mapping[str, Mapping[str, object]]) -> Staged:
    """Entries into the storage's registry; those of other people stay as they are."""
    known = {}
    if layout.registry.is_file():
        known = {name: dict(entry.fields) for name, entry in dataset.read_registry(layout.registry).items()}
    text = json.dumps({**known, **entries}, indent=2, ensure_ascii=False) + "\n"
    outcome = write_text(layout.registry, text)
    return Staged(str(layout.registry), outcome, len(text.encode()), "registry")


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    hints = {
        errno.ENOSPC: "free some space, or choose another storage",
        errno.EDQUOT: "your quota is used up: free some space",
        errno.EACCES: "you may not write there: check the owner and the mount",
        errno.EROFS: "it is mounted read-only",
    }
    try:
        yield
    except OSError as error:
        hint = hints.get(error.errno or 0, "check that the storage is mounted and healthy")
        raise StorageError(Problem(f"cannot write: {error.strerror or error}", str(path), hint)) from None


def as_json(staged: Sequence[Staged]) -> str:
    """The outcome of a staging as one JSON document."""
    return json.dumps({"staged": [asdict(item) for item in staged]}, indent=2)
