"""Where data comes from: local paths and, through fsspec, `https://`, `s3://`, `gs://`, `hf://`."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from cpt_launcher.config import names
from cpt_launcher.errors import DataError, Problem, StorageError
from cpt_launcher.urls import shown

# fsspec knows fifty more, some of which run code or read this machine's files, and chains them with `::`.
SCHEMES = ("http", "https", "s3", "s3a", "gs", "gcs", "hf")
DEPTH = 10  # of a web server's folders, whose links may go round in circles
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
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


def refused(text: str) -> str | None:
    """Why a text is no source, None if it is one: a path, or a URL of one of `SCHEMES`."""
    scheme, separator, _ = text.partition("://")
    if "::" in text:
        return "a chain of file systems (::) is no source"
    if separator and scheme not in SCHEMES:
        return f"{scheme}:// is no source" if scheme.isalnum() else ":// in a path is no source"
    return "control characters are in no source" if names.has_control(text) else None


def allowed() -> str:
    """What may be a source, in words."""
    return f"use a path, or a URL of {', '.join(f'{scheme}://' for scheme in SCHEMES)}"


def path_of(text: str) -> str:
    """A source without the query and fragment that a URL may have, where signatures stand: it ends in the name."""
    marks = r"[?#]" if text.startswith(("http://", "https://")) else r"\?"
    return re.split(marks, text, maxsplit=1)[0] if "://" in text else text


def is_folder(text: str) -> bool:
    """Whether a source is a remote folder."""
    return "://" in text and text.endswith("/")


@dataclass(frozen=True)
class Version:
    """A source as it is now: its size in bytes if known, and a stamp that changes with its content, if there is one."""

    url: str
    size: int | None
    stamp: str | None
    parts: tuple[Version, ...] = ()

    @property
    def files(self) -> tuple[Version, ...]:
        """Itself, or the files that it is put together of."""
        return self.parts or (self,)


def version_of_all(url: str, files: Sequence[str], remark: str) -> Version:
    """The version of what is made of a source's files; `remark` says how, and is part of the stamp.

    Raises:
        DataError: one is not there, or its file system is not installed.
    """
    parts = tuple(version(file) for file in files)
    stamps, sizes = [part.stamp for part in parts], [part.size for part in parts]
    size = sum(known for known in sizes if known is not None) if None not in sizes else None
    if None in stamps:
        return Version(url, size, None, parts)
    digest = hashlib.sha256("\n".join(map(str, stamps)).encode("utf-8", "surrogateescape")).hexdigest()
    return Version(url, size, f"{shown(url)} {len(parts)} {digest[:32]} {remark}", parts)


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
    """The files below a remote folder: URL and path relative to it. Hidden ones are left out, and so is what is in
    something hidden, and what tells of the data.

    Raises:
        DataError: it is not there, or what the server lists is not all data of one kind, or not below the folder.
    """
    system, path = _system(url)
    depth = {"maxdepth": DEPTH} if url.startswith("http") else {}
    caught: tuple[type[Exception], ...] = (*failures(), RecursionError)
    try:
        found = sorted(system.find(path, **depth))
    except caught as error:
        raise unreadable(url, error) from None
    root = path.rstrip("/") + "/"
    listed = [name for name in found if not f"{name}/".endswith(("//", root))]  # without folders' marks
    below = [_below(name, root, url) for name in listed]
    kept = [(full, inner) for full, inner in below if inner and not names.is_hidden(inner)]
    kept = [(full, inner) for full, inner in kept if not names.is_documentation(inner)]
    wrong = names.wrong_kinds(inner for _, inner in kept) if kept else "the folder holds no data"
    if wrong:
        hint = "name a folder that holds data of one kind and nothing else, or a single file"
        raise DataError(Problem(wrong, shown(url), hint, "registry-file"))
    return kept


def _below(name: str, root: str, url: str) -> tuple[str, str]:
    """A listed file's URL, and its path in the folder: empty for a link to the folder itself, sorted otherwise.

    Raises:
        DataError: it is not in the folder.
    """
    inner = path_of(url + name.removeprefix(root))[len(url) :]
    wrong = names.wrong_inner(inner) if name.startswith(root) else "it is elsewhere"
    if wrong and (inner or not name.startswith(root)):
        what = f"the folder lists {shown(inner)!r}, which is no file of it: {wrong}"
        hint = "nothing was staged: is this the right server?"
        raise DataError(Problem(what, shown(url), hint, "registry-source"))
    return url + name.removeprefix(root), inner


def open_at(url: str, offset: int) -> IO[bytes]:
    """The source's bytes from `offset` on, decompressed if its name ends in .gz or .zst (then from the start).

    Raises:
        DataError: it cannot be opened.
    """
    system, path = _system(url)
    caught: tuple[type[Exception], ...] = (*failures(), ImportError)
    suffix = next((ending for ending in names.COMPRESSED if path_of(url).endswith(ending)), None)
    try:
        opened: IO[bytes] = system.open(path, "rb", compression="gzip" if suffix == ".gz" else None)
        if suffix == ".zst":
            return io.BufferedReader(_Zstd(opened), _Zstd.CHUNK)
        if offset:
            opened.seek(offset)
    except caught as error:
        raise unreadable(url, error) from None
    return opened


class _Zstd(io.RawIOBase):
    """What a .zst file holds, all frames of it; fsspec's reader takes the end of a cut file for the end of the data.

    Reading raises:
        EOFError: the file ends within a frame.
        ZstdError: it is damaged.
    """

    CHUNK = 1 << 20
    STEP = 4 << 10  # packed bytes at a time: a block of four may unpack to 128 KiB (RFC 8878, RLE_Block)

    def __init__(self, packed: IO[bytes]) -> None:
        import zstandard  # not at the top: it is optional

        self._packed, self._new = packed, zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._in = self._out = memoryview(b"")
        self._began = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._out and self._more():
            if self._frame.eof:
                self._frame = self._new()
            step, self._in, self._began = self._in[: self.STEP], self._in[self.STEP :], True
            self._out = memoryview(self._frame.decompress(step))
            if self._frame.eof and self._frame.unused_data:
                self._in = memoryview(self._frame.unused_data + bytes(self._in))
        size = min(len(buffer), len(self._out))
        buffer[:size] = self._out[:size]
        self._out = self._out[size:]
        return size

    def _more(self) -> bool:
        """Whether there are packed bytes left."""
        self._in = self._in or memoryview(self._packed.read(self.CHUNK))
        if not self._in and self._began and not self._frame.eof:
            raise EOFError("the file ends within a frame")
        return bool(self._in)

    def close(self) -> None:
        if not self.closed:
            self._packed.close()
        super().close()


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

    if "://" not in url:
        return fsspec.filesystem("file"), url  # as it is: fsspec would look for chains in a path, too
    if wrong := refused(url):
        raise DataError(Problem(f"cannot read from there: {wrong}", shown(url), allowed(), "registry-source"))
    options: dict[str, Any] = {}
    try:
        if url.startswith(("http://", "https://")):
            import aiohttp

            # Its default ends every download after five minutes.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(url.partition("://")[0])
        hint = f"pip install 'cpt-launcher[{extra}]'" if extra else allowed()
        raise DataError(Problem(f"cannot read from there: {shown(str(error))}", shown(url), hint)) from None
    return system, path


def unreadable(url: str, error: BaseException) -> DataError:
    """The error for a source that cannot be read, with the reason behind it."""
    while error.__cause__ is not None:  # fsspec reports a dead server as a missing file, the reason behind it
        error = error.__cause__
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = "check the entry's source and the network"
    if isinstance(error, ImportError) and error.name == "zstandard":
        hint = "pip install 'cpt-launcher[zst]'"
    elif isinstance(error, EOFError | zlib.error) or type(error).__name__ in ("BadGzipFile", "ZstdError"):
        hint = "the compressed file is damaged or cut short where it is: make or fetch it again"
    elif isinstance(error, TimeoutError):
        reason = f"{type(error).__name__}: nothing came for a minute"
    return DataError(Problem(f"cannot read the data ({shown(reason)})", shown(url), hint))
