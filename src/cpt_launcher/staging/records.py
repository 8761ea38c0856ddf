"""What is seen in a file of text records: counts, and what is wrong with which record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cpt_launcher.errors import Problem
from cpt_launcher.wording import counted

# An estimate for English text and vocabularies of 32 k to 262 k tokens; other scripts have more tokens a byte.
BYTES_PER_TOKEN = 4
MAX_RECORD = 64 << 20
SHOWN = 5
MEND = "mend it"
LEAVE_OUT = f"{MEND}, or leave such records out: cpt stage-data CONFIG --on-bad-record skip"
TOO_LONG = "a document of over"


@dataclass
class Report:
    """What was seen in one file: counts, bytes of text, and the first bad and empty records by line number.

    An empty record trains nothing but the end-of-text token: a pity, not a failure. `path` is the file that is being
    read: of text files, many make one report.
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
    wrong_file: str = ""
    places: list[str] = field(default_factory=list)
    first_empty: str = ""

    @property
    def tokens(self) -> int:
        """Counted where there is a tokenizer, else estimated; an end-of-text token for each document included."""
        return estimated_tokens(self.text_bytes, self.documents) if self.count is None else self.counted

    def add_bad(self, line: int, reason: str) -> None:
        self.bad_count += 1
        self.last_reason = reason
        if len(self.bad) < SHOWN:
            self.bad.append((line, reason))
            self.places.append(f"{self.path}:{line}:1")

    def add_empty(self, line: int) -> None:
        self.empty_count += 1
        self.first_empty = self.first_empty or f"{self.path}:{line}:1"
        self.empty += [line] if len(self.empty) < SHOWN else []

    def problems(self) -> list[Problem]:
        """What is wrong with it, the first records by their place."""
        if self.wrong_file:
            return [Problem(self.wrong_file, str(self.path), "is it the right file?", "data-record")]
        if not self.documents and not self.bad:
            return [Problem("there is no document in it", str(self.path), "is it the right file?", "data-empty")]
        rules = {True: "data-encoding", False: "data-record"}
        no_column = not self.documents and self.last_reason.startswith("no column")
        hint = LEAVE_OUT if self.documents else MEND  # without any document nothing would be left
        if no_column:
            hint = 'set the entry\'s "columns": {"prompt": ...} to the column that holds the text'
        split = 'split it, or set "per_line": true in the entry if each of its lines is a document'
        found = [
            Problem(
                reason, place, split if reason.startswith(TOO_LONG) else hint, rules[reason.startswith("not UTF-8")]
            )
            for place, (_, reason) in zip(self.places, self.bad, strict=True)
        ]
        if hidden := self.bad_count - len(self.bad):
            last = self.places[-1].removesuffix(":1")  # by place, it comes after the last that is shown
            found.append(Problem(f"{counted(hidden, 'more bad record')}", f"{last}:2", "", "data-record"))
        return found


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
        report.add_empty(line)
    elif not isinstance(record[column], str):
        report.add_bad(line, f"'{column}' is {type(record[column]).__name__}, not text")
    else:
        report.documents += 1
        report.text_bytes += len(record[column].encode("utf-8", "surrogatepass"))
        if report.count is not None:
            report.counted += report.count(record[column]) + 1
