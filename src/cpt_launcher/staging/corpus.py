"""Reading a corpus: does every record parse, is there text in its column, and how much of it is there."""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib.util
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.staging.records import MAX_RECORD, Report, judge
from cpt_launcher.staging.texts import LineCounter, TooLongError

TEXTS = (".csv", ".json", ".jsonl", ".txt")
TABLES = (".arrow", ".parquet")  # read where pyarrow is installed
CHUNK = 4 << 20
_TEXT = re.compile(rb"\S[^\n]*")


class Checker:
    """Checks line-wise data chunk by chunk while it passes; memory is bounded by the longest line.

    Args:
        reject: called with line number, reason and bytes of each bad line, which is then left out of what
            `feed` returns; without it bad lines pass and are only counted.
        count: counts the tokens of a text.
    """

    def __init__(
        self,
        path: Path,
        column: str,
        *,
        reject: Callable[[int, str, bytes], None] | None = None,
        count: Callable[[str], int] | None = None,
    ) -> None:
        self.report = Report(path, count=count)
        self._column, self._reject = column, reject
        self._rest = b""
        self._line = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; returns those of complete lines that are to be kept."""
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1
        if not end and len(data) > MAX_RECORD:
            self.report.add_bad(self._line + 1, f"a record of over {MAX_RECORD >> 20} MiB; the rest was not read")
            raise TooLongError
        self._rest = data[end:]
        return self._lines(data[:end])

    def close(self) -> bytes:
        """The end of the file: its last line may have no line break."""
        rest, self._rest = self._rest, b""
        return self._lines(rest) if rest else b""

    def _lines(self, data: bytes) -> bytes:
        """What is kept of whole lines. Blank ones are counted, not taken out: a few packed bytes make millions."""
        kept, begin, at = [], 0, 0
        for found in _TEXT.finditer(data):
            first, end = found.span()
            start = first if first == at else data.rfind(b"\n", at, first) + 1 or at
            self._line += 1 if start == at else 1 + data.count(b"\n", at, start)
            at = end + 1
            if not self._keep(data[start:end]) and self._reject is not None:
                kept.append(data[begin:start])
                begin = at
        self._line += data.count(b"\n", at)
        return b"".join([*kept, data[begin:]]) if kept else data

    def _keep(self, line: bytes) -> bool:
        if self._line == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line or line.isspace():
            return True
        before = self.report.bad_count
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            self.report.add_bad(self._line, _why(line, error))
        else:
            judge(self.report, self._line, record, self._column)
        bad = self.report.bad_count > before
        if bad and self._reject is not None:
            self._reject(self._line, self.report.last_reason, line)
        return not bad


def _why(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 (byte {wrong.start} of the line)"
    return f"not JSON: {error}"


def counter(tokenizer: Path) -> Callable[[str], int]:
    """Counts the tokens of a text with a `tokenizer.json`, given itself or by its folder (needs `tokenizers`).

    Raises:
        ConfigError: there is no such file, or `tokenizers` is not installed.
    """
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not file.is_file():
        raise ConfigError(Problem("there is no tokenizer.json", str(file), "a model's folder, or the file itself"))
    try:
        from tokenizers import Tokenizer
    except ImportError:
        hint = "pip install tokenizers (cpt-launcher[train] brings it)"
        raise ConfigError(Problem("counting tokens needs tokenizers", "this environment", hint)) from None
    loaded = Tokenizer.from_file(str(file))
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


class Opener(Protocol):
    """Opens a file's content, unpacked, from its start; each time anew."""

    def __call__(self) -> IO[bytes]: ...


def read(
    path: Path,
    column: str,
    suffix: str | None = None,
    count: Callable[[str], int] | None = None,
    opened: Opener | None = None,
) -> Report:
    """Read one file of text records to its end; memory stays bounded by the largest record.

    `suffix` says what it is where its own name does not; `count` counts tokens; `opened` opens what is not to be read
    as it is. Of a `.txt` file each line is a document, as LLaMA-Factory reads it.

    A `.json` file that is one array is the exception: it is read whole, as LLaMA-Factory does.

    Raises:
        OSError: the file cannot be read.
        DataError: it cannot be unpacked.
    """
    suffix = suffix or path.suffix
    report = Report(path, count=count)
    open_it = opened or functools.partial(path.open, "rb")
    with open_it() as file:
        start = file.read(1024)
        report.wrong_file = wrong_start(suffix, start)
        if report.wrong_file:
            return report
        if is_line_wise(suffix, start):
            return _line_wise(file, start, LineCounter(report, column) if suffix == ".txt" else report, column)
    if suffix in TABLES:
        return _table(path, suffix, column, report, opened)
    with open_it() as file:
        for line, record in _csv(file, report) if suffix == ".csv" else _array(file, report):
            judge(report, line, record, column)
    return report


def _line_wise(file: IO[bytes], start: bytes, into: LineCounter | Report, column: str) -> Report:
    lines = into if isinstance(into, LineCounter) else Checker(into.path, column, count=into.count)
    with contextlib.suppress(TooLongError):
        lines.feed(start)
        while chunk := file.read(CHUNK):
            lines.feed(chunk)
        lines.end() if isinstance(lines, LineCounter) else lines.close()
    return lines.report


_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive"}
_PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ\x00": ".xz", b"BZh": ".bz2"}
_MAGICS = {".parquet": (b"PAR1",), ".arrow": (b"ARROW1", b"\xff\xff\xff\xff")}


def wrong_start(suffix: str, start: bytes) -> str:
    """Why a file that begins like this is not what its name says; empty if nothing speaks against it.

    Archives are recognised by their magic numbers; tar's stands behind the first member's header (POSIX, ustar).
    """
    archive = next((name for magic, name in _ARCHIVES.items() if start.startswith(magic)), "")
    archive = "a tar archive" if start[257:262] == b"ustar" else archive
    if archive:
        return f"it is {archive}: unpack it, and name the files that were in it"
    ending = next((ending for magic, ending in _PACKED.items() if start.startswith(magic)), None)
    if ending in (".xz", ".bz2") and suffix in TEXTS and not (ending == ".bz2" and start[4:10] != b"1AY&SY"):
        return f"it is compressed as {ending}, which is not read: unpack it, or pack it as .gz or .zst"
    if ending in (".gz", ".zst") and suffix in TEXTS:
        return f"it is compressed, and its name does not end in {ending}"
    if suffix in _MAGICS and not start.startswith(_MAGICS[suffix]):
        return f"it does not begin like {suffix[1:]}"
    return ""


def is_line_wise(suffix: str, start: bytes) -> bool:
    """Whether each line is a record of its own: not so in CSV, and in a `.json` file that is one array."""
    is_array = suffix == ".json" and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    return suffix in (".jsonl", ".json", ".txt") and not is_array


def _array(file: IO[bytes], report: Report) -> Iterator[tuple[int, object]]:
    try:
        records = json.load(file)
    except (ValueError, RecursionError) as error:
        report.add_bad(1, f"not JSON: {error}")
        return
    yield from enumerate(records, 1)


def _csv(file: IO[bytes], report: Report) -> Iterator[tuple[int, object]]:
    csv.field_size_limit(MAX_RECORD)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(text)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        report.add_bad(rows.line_num, f"not CSV: {error}")
    except UnicodeDecodeError as error:
        report.add_bad(rows.line_num + 1, f"not UTF-8: {error.reason}")
    finally:
        text.detach()


def _table(path: Path, suffix: str, column: str, report: Report, opened: Opener | None) -> Report:
    """A Parquet or Arrow file, batch by batch; one that is packed, from a copy: its end is read first."""
    import pyarrow as pa  # not at the top: it is large, and only here
    import pyarrow.parquet as pq

    if opened is not None:
        with tempfile.NamedTemporaryFile() as whole, opened() as file:
            shutil.copyfileobj(file, whole, CHUNK)
            whole.flush()
            return _table(Path(whole.name), suffix, column, report, None)
    line = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches() if suffix == ".parquet" else _arrow(path):
            if column not in batch.schema.names:
                report.add_bad(1, f"no column '{column}', but {', '.join(batch.schema.names[:6])}")
                break
            for value in batch.column(column).to_pylist():
                line += 1
                judge(report, line, {column: value}, column)
    except pa.ArrowException as error:
        report.add_bad(line + 1, f"not {suffix[1:]}: {str(error).splitlines()[0]}")
    return report


def _arrow(path: Path) -> Iterator[Any]:
    """The batches of an Arrow file in either of its two formats; datasets writes streams."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from reader


def is_readable(suffix: str) -> bool:
    """Whether `read` can look into such a file here."""
    return suffix in TEXTS or (suffix in TABLES and importlib.util.find_spec("pyarrow") is not None)
