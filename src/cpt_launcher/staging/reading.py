"""Reading data where it is, packed or not, without staging it: as staging would see it."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from cpt_launcher.config import names
from cpt_launcher.errors import DataError, Problem
from cpt_launcher.staging import corpus, sources, texts
from cpt_launcher.staging.records import Report
from cpt_launcher.staging.texts import Unit

# gzip packs text 3 to 5 to 1, logs that repeat themselves 100 to 1, and at best 1,032 to 1 (zlib's technical details);
# below the floor a bomb does no harm.
MAX_RATIO, UNPACKED_FLOOR = 200, 100 << 20


def refuse_bomb(packed: int, unpacked: int, shown: str) -> None:
    """Look at what came out of a packed source so far, in bytes.

    Raises:
        DataError: it is more than text unpacks to.
    """
    if unpacked > max(UNPACKED_FLOOR, packed * MAX_RATIO):
        what = f"its {packed:,} bytes unpack to more than {unpacked:,}: no text is packed so tightly"
        raise DataError(Problem(what, shown, "if it is meant, unpack it yourself and name the plain file"))


def is_readable(path: Path) -> bool:
    """Whether `file` can look into such a file here."""
    return corpus.is_readable(PurePosixPath(names.plain_name(path.name)).suffix)


def file(path: Path, column: str, count: Callable[[str], int] | None = None) -> Report:
    """What is in one local file of data.

    Raises:
        OSError: it cannot be read.
        DataError: it is damaged, or unpacks to more than text does.
    """
    plain = names.plain_name(path.name)
    opened = functools.partial(_unpacked, path) if plain != path.name else None
    return corpus.read(path, column, PurePosixPath(plain).suffix, count, opened)


def text_files(paths: Sequence[Path], column: str, unit: Unit, count: Callable[[str], int] | None = None) -> Report:
    """What is in local text files that belong to one dataset.

    Raises:
        OSError: one cannot be read.
        DataError: one is damaged, or unpacks to more than text does.
    """
    report = Report(paths[0], count=count)
    maker = texts.Maker(report, column, unit)
    for path in paths:
        maker.begin(path)
        with _unpacked(path) as opened:
            chunk = opened.read(corpus.CHUNK)
            if wrong := corpus.wrong_start(texts.ENDING, chunk):
                report.wrong_file = wrong
                return report
            try:
                while chunk:
                    maker.feed(chunk)
                    chunk = opened.read(corpus.CHUNK)
                maker.end()
            except texts.TooLongError:
                continue
    report.path = paths[0] if len(paths) == 1 else paths[0].parent
    return report


def _unpacked(path: Path) -> IO[bytes]:
    if names.plain_name(path.name) == path.name:
        return path.open("rb")
    return io.BufferedReader(_Bounded(sources.open_at(str(path), 0), path), corpus.CHUNK)


class _Bounded(io.RawIOBase):
    """The content of a packed file, up to what text packs to."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path = stream, path
        self._packed, self._unpacked = path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except sources.failures() as error:
            raise sources.unreadable(str(self._path), error) from None
        self._unpacked += len(data)
        refuse_bomb(self._packed, self._unpacked, str(self._path))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
