"""Reading a corpus: does every record parse, is there text in its column, and how much of it is there."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cpt_launcher.errors import Problem

# LLaMA-Factory 0.9.3, extras/constants.py, FILEEXT2TYPE; lower case only.
EXTENSIONS = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".txt")
READABLE = (".csv", ".json", ".jsonl", ".txt")
# An estimate for English text and vocabularies of 32 k to 262 k tokens; other scripts have more tokens a byte.
BYTES_PER_TOKEN = 4
MAX_RECORD = 64 << 20
SHOWN = 5


@dataclass
class Report:
    """What was seen in one file: counts, bytes of text, and the first bad and empty records by line number.

    An empty record trains nothing but the end-of-text token: a pity, not a failure.
    """

    path: Path
    documents: int = 0
    text_bytes: int = 0
    bad_count: int = 0
    empty_count: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Estimated, an end-of-text token for each document included."""
        return self.text_bytes // BYTES_PER_TOKEN + self.documents

    def add_bad(self, line: int, reason: str) -> None:
        self.bad_count += 1
        if len(self.bad) < SHOWN:
            self.bad.append((line, reason))

    def problems(self) -> list[Problem]:
        """What is wrong with it, the first records by their place."""
        if not self.documents and not self.bad:
            return [Problem("there is no document in it", str(self.path), "is it the right file?", "data-empty")]
        rules = {True: "data-encoding", False: "data-record"}
        found = [
            Problem(reason, f"{self.path}:{line}:1", "", rules[reason.startswith("not UTF-8")])
            for line, reason in self.bad
        ]
        hidden = self.bad_count - len(self.bad)
        return [*found, Problem(f"{hidden:,} more bad records", str(self.path), "", "data-record")] if hidden else found


def read(path: Path, column: str) -> Report:
    """Read one file of text records to its end; memory stays bounded by the largest record.

    A `.json` file that is one array is the exception: it is read whole, as LLaMA-Factory does.

    Raises:
        OSError: the file cannot be read.
    """
    report = Report(path)
    with path.open("rb") as file:
        for line, record in _records(file, path.suffix, report):
            _judge(report, line, record, column)
    return report


def _records(file: IO[bytes], suffix: str, report: Report) -> Iterator[tuple[int, object]]:
    if suffix == ".txt":
        return ((number, {"text": text}) for number, text in _lines(file, report))
    if suffix == ".csv":
        return _csv(file, report)
    start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    file.seek(0)
    return _array(file, report) if suffix == ".json" and start == b"[" else _json_lines(file, report)


def _lines(file: IO[bytes], report: Report) -> Iterator[tuple[int, str]]:
    """Numbered lines; blank ones are skipped as the loader does, one beyond `MAX_RECORD` ends the reading."""
    number = 0
    while raw := file.readline(MAX_RECORD + 1):
        number += 1
        if len(raw) > MAX_RECORD:
            report.add_bad(number, f"a record of over {MAX_RECORD >> 20} MiB; the rest was not read")
            return
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            report.add_bad(number, f"not UTF-8 (byte {error.start} of the line)")
            continue
        if text.strip():
            yield number, text


def _json_lines(file: IO[bytes], report: Report) -> Iterator[tuple[int, object]]:
    for number, text in _lines(file, report):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            report.add_bad(number, f"not JSON: {error}")
            continue
        yield number, record


def _array(file: IO[bytes], report: Report) -> Iterator[tuple[int, object]]:
    try:
        records = json.load(file)
    except (ValueError, RecursionError) as error:
        report.add_bad(1, f"not JSON: {error}")
        return
    yield from enumerate(records, 1)


def _csv(file: IO[bytes], report: Report) -> Iterator[tuple[int, object]]:
    csv.field_size_limit(MAX_RECORD)
    rows = csv.DictReader(text + "\n" for _, text in _lines(file, report))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        report.add_bad(rows.line_num, f"not CSV: {error}")


def _judge(report: Report, line: int, record: object, column: str) -> None:
    if not isinstance(record, dict):
        report.add_bad(line, "not an object with named columns")
    elif column not in record:
        report.add_bad(line, f"no column '{column}', but {', '.join(map(str, list(record)[:6]))}")
    elif record[column] is None or (isinstance(record[column], str) and not record[column].strip()):
        report.empty_count += 1
        report.empty += [line] if len(report.empty) < SHOWN else []
    elif not isinstance(record[column], str):
        report.add_bad(line, f"'{column}' is {type(record[column]).__name__}, not text")
    else:
        report.documents += 1
        report.text_bytes += len(record[column].encode("utf-8", "surrogatepass"))
