"""What is seen in a file of text records: counts, and what is wrong with which record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cpt_launcher.errors import Problem

# An estimate for English text and vocabularies of 32 k to 262 k tokens; other scripts have more tokens a byte.
BYTES_PER_TOKEN = 4
MAX_RECORD = 64 << 20
SHOWN = 5
LEAVE_OUT = "mend it, or leave such records out: cpt stage-data --on-bad-record skip"


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
    last_reason: str = ""
    count: Callable[[str], int] | None = None
    counted: int = 0

    @property
    def tokens(self) -> int:
        """Counted where there is a tokenizer, else estimated; an end-of-text token for each document included."""
        return estimated_tokens(self.text_bytes, self.documents) if self.count is None else self.counted

    def add_bad(self, line: int, reason: str) -> None:
        self.bad_count += 1
        self.last_reason = reason
        if len(self.bad) < SHOWN:
            self.bad.append((line, reason))

    def problems(self) -> list[Problem]:
        """What is wrong with it, the first records by their place."""
        if not self.documents and not self.bad:
            return [Problem("there is no document in it", str(self.path), "is it the right file?", "data-empty")]
        rules = {True: "data-encoding", False: "data-record"}
        no_column = not self.documents and self.last_reason.startswith("no column")
        hint = (
            'set the entry\'s "columns": {"prompt": ...} to the column that holds the text' if no_column else LEAVE_OUT
        )
        found = [
            Problem(reason, f"{self.path}:{line}:1", hint, rules[reason.startswith("not UTF-8")])
            for line, reason in self.bad
        ]
        hidden = self.bad_count - len(self.bad)
        return [*found, Problem(f"{hidden:,} more bad records", str(self.path), "", "data-record")] if hidden else found


def estimated_tokens(text_bytes: int, documents: int) -> int:
    """From bytes of text, with an end-of-text token for each document."""
    return text_bytes // BYTES_PER_TOKEN + documents


def judge(report: Report, line: int, record: object, column: str) -> None:
    """Count a record, or note what is wrong with it."""
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
        if report.count is not None:
            report.counted += report.count(record[column]) + 1
