"""Where data comes from: local paths and, through fsspec, `https://`, `s3://`, `gs://`, `hf://`."""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass
from typing import IO, Any

from cpt_launcher.errors import DataError, Problem, StorageError
from cpt_launcher.urls import shown

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
# What file systems call the version of a file; without any of them a change of the same size cannot be seen.
_VERSIONS = (
    "ETag",
    "etag",
    "Content-MD5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "generation",
    "blob_id",
)


@dataclass(frozen=True)
class Version:
    """A source as it is now: its size in bytes if known, and a stamp that changes with its content, if there is one."""

    url: str
    size: int | None
    stamp: str | None


def version(url: str) -> Version:
    """Ask for a source's size and stamp.

    Raises:
        DataError: it is not there, or its file system is not installed.
    """
    system, path = _system(url)
    try:
        info = system.info(path)
    except failures() as error:
        raise unreadable(url, error) from None
    marks = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name)]
    size = info.get("size")
    return Version(url, size, f"{shown(url)} {size} {' '.join(marks)}" if marks and size is not None else None)


def version_if_there(url: str) -> Version | None:
    """The version of an object, None if there is none.

    Raises:
        DataError: its file system is not installed.
    """
    system, path = _system(url)
    system.invalidate_cache()
    try:
        return version(url) if system.exists(path) else None
    except failures() as error:
        raise unreadable(url, error) from None


def upload(path: str, url: str) -> None:
    """Put a local file there; object stores show it when it is complete.

    Raises:
        StorageError: it could not be written.
    """
    system, target = _system(url)
    try:
        system.put_file(path, target)
    except failures() as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StorageError(
            Problem(f"cannot write ({shown(reason)})", shown(url), "check the bucket and your credentials")
        ) from None


def files(url: str) -> list[tuple[str, str]]:
    """The files below a remote folder: URL and path relative to it; the file itself if it is one.

    Raises:
        DataError: it is not there.
    """
    if not url.endswith("/"):
        return [(url, "")]
    system, path = _system(url)
    try:
        found = sorted(system.find(path))
    except failures() as error:
        raise unreadable(url, error) from None
    root = path.rstrip("/") + "/"
    below = [(system.unstrip_protocol(name), name.removeprefix(root)) for name in found]
    return [(full, inner) for full, inner in below if not inner.rpartition("/")[2].startswith((".", "_"))]


def open_at(url: str, offset: int) -> IO[bytes]:
    """The source's bytes from `offset` on, decompressed if its name ends in .gz or .zst (then from the start).

    Raises:
        DataError: it cannot be opened.
    """
    system, path = _system(url)
    caught: tuple[type[Exception], ...] = (*failures(), ImportError)
    suffix = next((ending for ending in COMPRESSION if url.endswith(ending)), None)
    try:
        opened: IO[bytes] = system.open(path, "rb", compression=COMPRESSION[suffix] if suffix else None)
        if offset:
            opened.seek(offset)
    except caught as error:
        raise unreadable(url, error) from None
    return opened


def failures() -> tuple[type[Exception], ...]:
    """What reading a source may raise: the system's errors, those of decompression, and those of the network
    libraries that are loaded. Their errors are no OSErrors.
    """
    found: list[type[Exception]] = [OSError, ValueError, EOFError, zlib.error]
    for module, name in (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("zstandard", "ZstdError"),
    ):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _system(url: str) -> tuple[Any, str]:
    import fsspec  # not at the top: it brings the network libraries with it

    options: dict[str, Any] = {}
    try:
        if url.startswith(("http://", "https://")):
            import aiohttp

            # Its default ends every download after five minutes.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(url.partition("://")[0])
        hint = f"pip install 'cpt-launcher[{extra}]'" if extra else "use https://, s3://, gs://, hf:// or a path"
        raise DataError(Problem(f"cannot read from there: {shown(str(error))}", shown(url), hint)) from None
    return system, path


def unreadable(url: str, error: BaseException) -> DataError:
    """The error for a source that cannot be read, with the reason behind it."""
    while error.__cause__ is not None:  # fsspec reports a dead server as a missing file, the reason behind it
        error = error.__cause__
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = "check the entry's source and the network"
    if "Compression type zstd" in reason:
        hint = "pip install 'cpt-launcher[zst]'"
    elif isinstance(error, EOFError | zlib.error) or type(error).__name__ in ("BadGzipFile", "ZstdError"):
        hint = "the compressed file is damaged or cut short where it is: make or fetch it again"
    elif isinstance(error, TimeoutError):
        reason = f"{type(error).__name__}: nothing came for a minute"
    return DataError(Problem(f"cannot read the data ({shown(reason)})", shown(url), hint))
