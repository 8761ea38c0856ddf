"""What a check found: a problem under a rule's stable id, an error or a warning, and how it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from cpt_launcher.errors import Problem
from cpt_launcher.escapes import flat

Severity = Literal["error", "warning"]
_PLACE = re.compile(r"(.*?):(\d+):(\d+)")
# Rules about data end in exit code 3, all others in 2.
_DATA_RULES = ("data-", "registry-file", "registry-source")


@dataclass(frozen=True)
class Finding:
    """One line of a report. Line and column count from 1."""

    path: str
    line: int
    column: int
    severity: Severity
    rule: str
    message: str
    hint: str = ""

    @property
    def place(self) -> str:
        """`path:line:column`; an override has none of them."""
        return self.path if self.path.startswith("command line") else f"{self.path}:{self.line}:{self.column}"

    @property
    def is_data(self) -> bool:
        return self.rule.startswith(_DATA_RULES)


def of(problem: Problem, severity: Severity = "error") -> Finding:
    """A problem as a finding; without a line it stands at the file's start."""
    match = _PLACE.fullmatch(problem.where)
    path, line, column = (match[1], int(match[2]), int(match[3])) if match else (problem.where, 1, 1)
    return Finding(path, line, column, severity, problem.rule, problem.what, problem.hint)


def ordered(found: Iterable[Finding]) -> list[Finding]:
    """Without repetitions, by place."""
    return sorted(set(found), key=lambda item: (item.path, item.line, item.column, item.rule, item.message))


def exit_code(found: Sequence[Finding], *, warnings_as_errors: bool) -> int:
    """0, 2 for configuration, 3 where only the data is at fault."""
    counted = [item for item in found if warnings_as_errors or item.severity == "error"]
    if not counted:
        return 0
    return 3 if all(item.is_data for item in counted) else 2


def as_text(found: Sequence[Finding]) -> str:
    """`path:line:column: severity[rule]: message (hint)`, a line each."""
    return "".join(flat(f"{item.place}: {item.severity}[{item.rule}]: {_message(item)}") + "\n" for item in found)


def as_github(found: Sequence[Finding]) -> str:
    """Workflow commands, which GitHub shows beside the lines (docs: workflow commands for GitHub Actions)."""
    return "".join(
        f"::{item.severity} file={_escaped(item.path, ':,')},line={item.line},col={item.column},"
        f"title={item.rule}::{_escaped(_message(item))}\n"
        for item in found
    )


def as_json(found: Sequence[Finding], notes: Sequence[str]) -> str:
    """One JSON document."""
    return json.dumps({"findings": [asdict(item) for item in found], "notes": list(notes)}, indent=2) + "\n"


def _message(item: Finding) -> str:
    flat = " ".join(item.message.split())
    return f"{flat} ({item.hint})" if item.hint else flat


def _escaped(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
