"""The only module that writes: files appear whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Literal

from cpt_launcher import jsontext, safe_open
from cpt_launcher.errors import Problem, StorageError

Outcome = Literal["created", "identical", "replaced", "removed"]
PART = ".cpt-part"
TEMP = ".cpt-temp"
STALE_SECONDS = 3600


def require_storage(storage: Path) -> None:
    """Check that the storage is there and can be written to.

    Raises:
        StorageError: it is absent, not a folder, or not writable.
    """
    if storage.exists() and not storage.is_dir():
        raise StorageError(Problem("the storage is a file, not a folder", str(storage), "storage: names a folder"))
    if not storage.is_dir():
        hint = f"is it mounted? If it is to be a plain folder: mkdir -p {storage}"
        raise StorageError(Problem("the storage is not there", str(storage), hint))
    with storage_errors(storage), tempfile.TemporaryFile(dir=storage):
        pass


def require_no_foreign_links(storage: Path, folder: Path) -> None:
    """Check that no folder on the way from the storage to `folder` is a link that somebody else made: whoever may write
    to the storage could have us write into our own home. The storage itself may be a link, and so may what we or root
    linked.

    Raises:
        StorageError: there is one.
    """
    inside = folder.relative_to(storage).parts if folder.is_relative_to(storage) else ()
    for number in range(1, len(inside) + 1):
        path = storage.joinpath(*inside[:number])
        if not path.is_symlink():
            continue
        whose = path.lstat().st_uid
        if whose != 0 and not safe_open.is_ours(whose, path.parent):
            what = f"it is a link to {path.readlink()} that {safe_open.user_name(whose)} made"
            hint = f"is it meant? Then replace it by one of your own, else remove it: rm {path}"
            raise StorageError(Problem(what, str(path), hint))


def require_space(folder: Path, size: int) -> None:
    """Check that `size` bytes fit on the file system of `folder`.

    Raises:
        StorageError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        what = f"{size:,} bytes are to be written, and {free:,} are free"
        raise StorageError(Problem(what, str(folder), "free some space, or choose another storage"))


def write_text(path: Path, text: str) -> Outcome:
    """Write a text file; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> Outcome:
    """Write a small file by rename; an identical one is left untouched.

    Raises:
        StorageError: it cannot be written.
    """
    with storage_errors(path):
        before = path.read_bytes() if path.is_file() else None
        if before == data:
            return "identical"
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMP)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                _publish(file, Path(name), path)
        finally:
            Path(name).unlink(missing_ok=True)
    return "created" if before is None else "replaced"


def remove_tree(path: Path) -> None:
    """Remove a file or folder that is only ours, if it is there."""
    with storage_errors(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def make_parents(path: Path) -> None:
    """Make the folders above a path, where they are not there.

    Raises:
        StorageError: they cannot be made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """A file as it is, with the folders it needs."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as given, safe_open.to_write(target, "r+b", -1) as file:
            file.truncate(0)
            shutil.copyfileobj(given, file)


def sync_tree(folder: Path) -> None:
    """Have the disk take every file below a folder, and let others read them; what links lead to is not touched."""
    with storage_errors(folder):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    os.fsync(handle)
                    os.fchmod(handle, 0o666 & ~_umask())
                finally:
                    os.close(handle)


def rename(path: Path, target: Path) -> None:
    """Give a file or folder its name."""
    with storage_errors(target):
        path.rename(target)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place at the end; after a failure the old one is as it was."""
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=TEMP))
        old = part.with_name(f"{part.name}.old")
        try:
            yield part
            part.chmod(0o777 & ~_umask())
            if folder.exists():
                folder.rename(old)
            try:
                part.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        finally:
            for leftover in (part, old):
                shutil.rmtree(leftover, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a file or folder to a dated name beside it, and return that name."""
    aside = path.with_name(f"{path.name}.{datetime.now(timezone.utc):%Y%m%d-%H%M%S}")
    with storage_errors(path):
        path.rename(aside)
    return aside


def append_to(path: Path) -> IO[bytes]:
    """Open a log for appending, its folder made as needed; unbuffered: closing it cannot fail for want of space.

    Raises:
        StorageError: it cannot be opened.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return safe_open.to_write(path, "ab")


def touch(path: Path) -> None:
    """Give a file the present time."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with safe_open.to_write(path, "ab") as file:
            os.utime(file.fileno())


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file (flock(2)); it ends with the process, however that ends. Without `wait`, False
    where another process holds it.

    A lock that is waited for is shared by all who may write to the folder above its own: both take their mode from
    there. Who holds it stands in it, and is logged where the waiting takes long.
    """
    with storage_errors(path):
        if wait:
            share(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = safe_open.lock_file(path)
    with file:
        if not safe_open.acquire(file, path, "", wait=wait):
            yield False
            return
        if wait:
            _let_in(file.fileno(), path.parent.stat(), 0o666)
        safe_open.sign(file)
        try:
            yield True
        finally:
            safe_open.unsign(file)


def share(folder: Path) -> None:
    """Make a folder that lets in whom the one above it lets in: its mode and group, whatever the umask."""
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        above = folder.parent.stat()
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        if folder.is_symlink():
            return
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _let_in(handle, above, 0o7777)
        finally:
            os.close(handle)


def _let_in(handle: int, above: os.stat_result, mask: int) -> None:
    """Give an open file or folder the group and mode of the one above it; another user has done that for theirs."""
    with contextlib.suppress(PermissionError):
        os.fchown(handle, -1, above.st_gid)
    with contextlib.suppress(PermissionError):
        os.fchmod(handle, stat.S_IMODE(above.st_mode) & mask)


@dataclass(frozen=True)
class Part:
    """The beginning of a file, beside its target and locked. `start` bytes of it are there already; with a stamp, what
    comes stays for the next try.
    """

    file: IO[bytes]
    path: Path
    target: Path
    start: int
    stamp: str | None

    def publish(self) -> None:
        """Give it the target's name."""
        _publish(self.file, self.path, self.target)
        _note_of(self.path).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)
        _note_of(self.path).unlink(missing_ok=True)


@contextlib.contextmanager
def part_of(target: Path, stamp: str | None) -> Iterator[Part]:
    """A file that takes the name of `target` when published. One that was left by an interrupted copy of the same
    source (`stamp` says which version of it) is continued; without a stamp it starts over. While another process is
    copying the same file, this one waits; where that takes long, it is logged.

    Raises:
        StorageError: it cannot be written, or it is another user's, or a link.
    """
    path = target.with_name(f".{target.name}{PART}")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder of this name is in the way")
        with _locked(path) as file:
            note = _note_of(path)
            if stamp is None or not note.is_file() or note.read_bytes() != stamp.encode():
                file.truncate(0)
            write_text(note, stamp or "")
            yield Part(file, path, target, file.seek(0, os.SEEK_END), stamp)


def _locked(path: Path) -> IO[bytes]:
    """The file at `path`, locked; if another process holds it, when that one is done with it."""
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(safe_open.part(path))
            safe_open.acquire(file, path, "another copy of the same file")
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                stack.pop_all()
                return file
        # it was renamed or removed while we waited


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.note")


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder: parts that nobody holds and nobody can continue. Links are none
    of ours: they go themselves, and nothing that they lead to.
    """
    for path in (*folder.glob(f".*{PART}"), *folder.glob(f".*{PART}.note")):
        with contextlib.suppress(OSError):
            if path.is_symlink():
                path.unlink()
    for path in folder.glob(f".*{PART}"):
        note = _note_of(path)
        if note.is_file() and note.stat().st_size:
            continue
        with contextlib.suppress(OSError), safe_open.to_write(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
    for note in folder.glob(f".*{PART}.note"):
        if not note.with_suffix("").exists():
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)
    for temp in folder.glob(f".*{TEMP}"):  # lives for milliseconds, unless its process was killed
        with contextlib.suppress(OSError):
            if temp.lstat().st_mtime < time.time() - STALE_SECONDS:
                temp.unlink()


def _publish(file: IO[bytes], part: Path, target: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.fchmod(file.fileno(), 0o666 & ~_umask())  # other users' workers are to read it
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    """As Linux tells it (proc_pid_status(5)): umask(2) asks only by changing it, for all threads."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    return _UMASK


_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError about `path`."""
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


def write_json(path: Path, value: object) -> Outcome:
    """Write a value as indented JSON; see `write_text`."""
    return write_text(path, jsontext.dumps(value, indent=2, ensure_ascii=False) + "\n")
