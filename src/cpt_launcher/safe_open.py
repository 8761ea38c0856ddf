"""Opening files to write to where others may write too, and waiting for their locks.

Whoever may write to a folder can put a link where we are about to write, to a file that only we may change, or a pipe,
which would have us wait for ever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pwd
import socket
import stat
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from cpt_launcher.errors import Problem, StorageError

PATIENCE_SECONDS = 1.0  # for which a held lock is waited for without a word
_LOG = logging.getLogger(__name__)


class InTheWayError(OSError):
    """A link, or something else that is no plain file, where one of ours is to be written."""


def to_write(path: Path, mode: str, buffering: int = 0) -> IO[Any]:
    """Open a file to write to it, made where it is not there; a link in its place is not followed.

    Raises:
        OSError: it cannot be opened, or it is no plain file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags | (os.O_APPEND if mode.startswith("a") else 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InTheWayError(errno.ELOOP, "a link is in the way, and is not followed") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InTheWayError(errno.EINVAL, "something that is no plain file is in the way")
    return os.fdopen(handle, mode, buffering=buffering)


def part(path: Path) -> IO[bytes]:
    """The beginning of a file, to be resumed.

    Raises:
        OSError: it cannot be opened.
        StorageError: it is a link, or somebody else's, or has a second name: others could change what is in it, or have
            us change what is theirs.
    """
    try:
        file: IO[bytes] = to_write(path, "a+b", -1)
    except InTheWayError as error:
        raise StorageError(Problem(f"cannot write: {error.strerror}", str(path), f"remove it: rm {path}")) from None
    except PermissionError:
        whose = path.lstat().st_uid
        if is_ours(whose, path.parent):
            raise
        raise _not_ours(path, whose) from None
    found = os.fstat(file.fileno())
    if is_ours(found.st_uid, path.parent) and found.st_nlink <= 1:
        return file
    file.close()
    if found.st_nlink > 1:
        raise StorageError(Problem("cannot write: the file has a second name", str(path), f"remove it: rm {path}"))
    raise _not_ours(path, found.st_uid)


def _not_ours(path: Path, whose: int) -> StorageError:
    what = f"a copy by {user_name(whose)}, still running or interrupted, is in the way"
    return StorageError(Problem(what, str(path), f"wait for that copy; if it is not running, remove it: rm {path}"))


def lock_file(path: Path) -> IO[bytes]:
    """A file to lock; one that another user shares for reading only can be locked too, except on NFS.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        return to_write(path, "r+b")
    except PermissionError:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0)


def acquire(file: IO[bytes], path: Path, holder: str, *, wait: bool = True) -> bool:
    """Lock a file exclusively (flock(2)). Where another process holds it, wait, and log that where it takes long; or
    without `wait` return False. `holder` says who that is, where the file does not.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                return False
        else:
            return True
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    _LOG.warning("waits for %s, held by %s", path, holder or _holder(file) or "another process")
    fcntl.flock(file, fcntl.LOCK_EX)
    return True


def sign(file: IO[bytes]) -> None:
    """Write into a lock who holds it."""
    with contextlib.suppress(OSError):  # opened for reading only, or the disk is full
        file.truncate(0)
        os.pwrite(
            file.fileno(), f"{user_name(os.geteuid())} on {socket.gethostname()}, process {os.getpid()}".encode(), 0
        )


def unsign(file: IO[bytes]) -> None:
    """Take that out again."""
    with contextlib.suppress(OSError):
        file.truncate(0)


def _holder(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 200, 0).decode("utf-8", "replace")


def user_name(uid: int) -> str:
    """An account's name, or its number where this machine does not know it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def is_ours(uid: int, folder: Path) -> bool:
    """Whether that is the owner that files of ours have in a folder: not us, where the mount maps users."""
    if uid == os.geteuid():
        return True
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid == uid
    return False
