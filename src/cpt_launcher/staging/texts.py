"""Text files as records: a document a file, or a document a line."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import orjson

from cpt_launcher.staging.records import MAX_RECORD, TOO_LONG, Report, judge

ENDING = ".txt"
Unit = Literal["document", "line"]  # what a record is made of: a whole file, or a line
Reject = Callable[[int, str, bytes], None]
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Maker:
    """Makes JSON Lines of text files, one after the other; memory is bounded by `MAX_RECORD`.

    Line breaks become `\\n` and a byte order mark is left out. So is what holds no text, a file or a line: as a record
    it would train an end-of-text token alone.

    Args:
        reject: called with line number, reason and bytes of what is not UTF-8, which is then left out; without it, it
            is only counted.
    """

    def __init__(self, report: Report, column: str, unit: Unit, reject: Reject | None = None) -> None:
        self.report = report
        self._column, self._unit, self._reject = column, unit, reject
        self._rest = b""
        self._line = 0

    def begin(self, path: Path) -> None:
        """The next file."""
        self.report.path, self._rest, self._line = path, b"", 0

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of a file; returns the records that are complete.

        Raises:
            TooLongError: a document is larger than a record may be; the report says which.
        """
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1 if self._unit == "line" else 0
        self._rest = data[end:]
        if len(self._rest) > MAX_RECORD:
            what = "a line" if self._unit == "line" else TOO_LONG.removesuffix(" of over")
            self.report.add_bad(self._line + 1, f"{what} of over {MAX_RECORD >> 20} MiB; the rest was not read")
            raise TooLongError
        return self._lines(data[:end])

    def end(self) -> bytes:
        """The end of a file: its document, or its last line if that has no line break."""
        rest, self._rest = self._rest, b""
        if self._unit == "line":
            return self._lines(rest)
        return self._record(1, rest.removeprefix(codecs.BOM_UTF8))

    def _lines(self, data: bytes) -> bytes:
        if not data:
            return b""
        data = data.removeprefix(codecs.BOM_UTF8) if self._line == 0 else data
        lines = _unified(data).removesuffix(b"\n").split(b"\n")
        first, self._line = self._line + 1, self._line + len(lines)
        return b"".join(self._record(number, line) for number, line in enumerate(lines, first))

    def _record(self, number: int, data: bytes) -> bytes:
        try:
            text = _unified(data).decode()
        except UnicodeDecodeError as error:
            self._refuse(number, data, error)
            return b""
        record = {self._column: text}
        if not text.strip():
            self._blank(number)
            return b""
        judge(self.report, number, record, self._column)
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)

    def _blank(self, number: int) -> None:
        """A blank line stands between documents; a file without text was meant to be one."""
        if self._unit == "document":
            self.report.add_empty(number)

    def _refuse(self, number: int, data: bytes, error: UnicodeDecodeError) -> None:
        reason = f"not UTF-8 (byte {error.start} of the {'line' if self._unit == 'line' else 'file'})"
        if data.startswith(_UTF16):
            reason = "not UTF-8, but UTF-16 (iconv -f UTF-16 -t UTF-8 makes it so)"
        self.report.add_bad(number, reason)
        if self._reject is not None:
            self._reject(number, f"{self.report.path.name}: {reason}", data)


class LineCounter(Maker):
    """Counts what LLaMA-Factory makes of a `.txt` file that it reads itself: each line, blank ones too."""

    def __init__(self, report: Report, column: str) -> None:
        super().__init__(report, column, "line")

    def _blank(self, number: int) -> None:
        self.report.add_empty(number)


class TooLongError(Exception):
    """A line or document larger than `MAX_RECORD`; the report says which."""


def _unified(data: bytes) -> bytes:
    """With `\\n` for every line break."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
