# placeholder so that other modules import: helper 4 replaces it
from __future__ import annotations
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ORIGIN = re.compile(r"^\([\w.:]+ pid=[^)]*\) ?")
_ERROR = re.compile(r"^(?:\w+\.)*\w+(?:Error|Exception)(?:: .+)?$")
_WRAPPED = "The above exception was the direct cause of the following exception"
Retry = Literal["yes", "no", "after-progress"]


@dataclass(frozen=True)
class Failure:
    cause: str
    origin: str
    means: str
    hint: str
    retry: Retry
    rule: str


def rank_of(line: str) -> tuple[int, int] | None:
    return None


def explain(lines: Sequence[str], ranks: Mapping[int, int] | None = None) -> Failure | None:
    found = None
    for line in lines:
        plain = _ORIGIN.sub("", _COLOUR.sub("", line)).strip()
        if _WRAPPED in plain and found:
            break
        if _ERROR.match(plain):
            found = plain
    return Failure(found, "", "", "", "yes", "disk-full" if "No space" in found else "unknown") if found else None
