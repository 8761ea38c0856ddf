"""From the last lines of a failed training to its cause, what it usually means, and what to change."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Retry = Literal["yes", "no", "after-progress"]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ORIGIN = re.compile(r"^\((?:[\w.:]+) pid=(\d+)(?:, ip=([\d.:a-f]+))?\) ?")
_STARTED = re.compile(r"ip=([\d.:a-f]+), pid=(\d+)\) world_rank=(\d+)")  # ray/train/_internal/backend_executor.py
_REMOTE = re.compile(r"ray::\S+ \(pid=(\d+), ip=([\d.:a-f]+)")  # ray/exceptions.py, RayTaskError
_RANK = re.compile(r"^\[rank\d+\]: ?")  # torch/distributed/distributed_c10d.py, _distributed_excepthook
_GROUP = re.compile(r"^ +(?:\||\+-?) ?")  # the margin of an exception group's traceback
# RayTaskError(ValueError) only wraps another error and matches neither of the two.
_ERROR = re.compile(r"^(?:\w+\.)*(?:\w+(?:Error|Exception|Interrupt|Exit)|StopIteration)(?:: .*)?$")
# Any name, which says something only where a traceback's frames stand right above it.
_ANY_NAME = re.compile(r"^[^\W\d]\w*(?:\.(?:<locals>|[^\W\d]\w*))*(?::(?: .*)?)?$")
_HEADER = re.compile(r"^(?:.*\s)?Traceback \(most recent call last\):$")
_FRAME = re.compile(r'^\s+File ".*", line \d+')
_WRAPPED = "The above exception was the direct cause of the following exception"
_DURING = "During handling of the above exception, another exception occurred"
# Of Ray 2.60, where several Rays are on one machine; the training continues.
_HARMLESS = re.compile(r"\(PlacementGroupCleaner pid=")
_NOISE = ("TrainingFailedError", "SystemExit", "KeyboardInterrupt")


@dataclass(frozen=True)
class Failure:
    """Why a training failed. `cause` is the innermost exception in a line; `origin` the rank and host it came from, if
    known; `retry` whether another try can mend it: `after-progress` where only a try that made a step deserves one.
    """

    cause: str
    origin: str
    means: str
    hint: str
    retry: Retry
    rule: str


@dataclass(frozen=True)
class _Known:
    id: str
    match: re.Pattern[str]
    means: str
    next: str
    retry: Retry


def explain(lines: Sequence[str], ranks: Mapping[int, int] | None = None) -> Failure | None:
    """The first failure in the lines of a log; None where they hold no exception.

    An exception that is known comes before one that is not: LLaMA-Factory wraps `GatedRepoError` into `OSError: Failed
    to load tokenizer.`, and says the reason only in the traceback above it.

    Args:
        ranks: world ranks by process id, from lines that are no longer among `lines`.
    """
    known_ranks = dict(ranks or {})
    known_ranks.update(found for line in lines if (found := rank_of(line)) is not None)
    errors = list(_errors(lines))
    chain = _first_chain(errors)
    for at, text in chain:
        for known in _causes():
            if known.match.search(text):
                return Failure(text, _origin(lines, at, known_ranks), known.means, known.next, known.retry, known.id)
    if chain:
        at, text = chain[0]
        return Failure(text, _origin(lines, at, known_ranks), "", "", "after-progress", "unknown")
    for at, line in enumerate(lines):
        text = _plain(line)
        for known in _causes():
            if known.id in ("nccl", "worker-lost", "gpu-memory", "host-memory", "driver-lost") and known.match.search(
                text
            ):
                return Failure(text, _origin(lines, at, known_ranks), known.means, known.next, known.retry, known.id)
    return None


def rank_of(line: str) -> tuple[int, int] | None:
    """Process id and world rank from the line with which Ray Train announces a worker."""
    found = _STARTED.search(line)
    return (int(found[2]), int(found[3])) if found else None


def _errors(lines: Sequence[str]) -> Iterator[tuple[int, str, bool]]:
    """Every exception with its line number, and whether a chain ends after it."""
    reader = _Tracebacks()
    for at, line in enumerate(lines):
        text = _plain(line)
        if _HARMLESS.search(line):
            continue
        if reader.ends(line) or _ERROR.match(text):
            more = " ".join(_plain(next_line) for next_line in lines[at + 1 : at + 4]) if text.endswith(":") else ""
            yield at, f"{text} {more}".strip(), False
        elif _WRAPPED in text or _DURING in text:
            yield at, text, True


class _Tracebacks:
    """Finds the lines in which tracebacks end, whatever the exception is called. Each process's lines are followed on
    their own: those of Ray's workers are mixed. RayTaskError's frames stand below a line with its task.
    """

    def __init__(self) -> None:
        self._has_frames: dict[str, bool] = {}  # of the tracebacks that have not ended

    def ends(self, line: str) -> bool:
        """Whether this line names the exception of the traceback above it."""
        clean = _COLOUR.sub("", line)
        own = _ORIGIN.match(clean)
        who, text = (own[1] if own else ""), _unprefixed(clean)
        if _HEADER.match(text) or _REMOTE.search(text):
            self._has_frames[who] = False
        elif _FRAME.match(text):
            self._has_frames.update(dict.fromkeys({who} & set(self._has_frames), True))
        elif text and not text[0].isspace():
            return self._has_frames.pop(who, False) and _ANY_NAME.match(text) is not None
        return False


def _first_chain(errors: list[tuple[int, str, bool]]) -> list[tuple[int, str]]:
    """The exceptions of the first failure, the innermost first where they are chained, else the last one first."""
    chain: list[tuple[int, str]] = []
    linked = False
    for at, text, is_link in errors:
        if is_link:
            linked = linked or bool(chain)
        elif not any(name in text for name in _NOISE):
            chain.append((at, text))
    return chain if linked else chain[::-1]


def _origin(lines: Sequence[str], at: int, ranks: Mapping[int, int]) -> str:
    """Rank, host and process of the line's worker, by the line's own prefix, else by the traceback around it."""
    own = _ORIGIN.match(_COLOUR.sub("", lines[at]))
    if own and int(own[1]) in ranks:
        return _worker(int(own[1]), own[2], ranks)
    for line in [*reversed(lines[max(0, at - 60) : at + 1]), *lines[at : at + 60]]:
        if found := _REMOTE.search(_COLOUR.sub("", line)):
            return _worker(int(found[1]), found[2], ranks)
    return _worker(int(own[1]), own[2], ranks) if own else ""


def _worker(pid: int, host: str | None, ranks: Mapping[int, int]) -> str:
    who = f"rank {ranks[pid]}" if pid in ranks else "a worker"
    return f"{who}{f' on {host}' if host else ''} (pid {pid})"


def _plain(line: str) -> str:
    return _unprefixed(_COLOUR.sub("", line)).strip()


def _unprefixed(line: str) -> str:
    """Without what Ray, torch and exception groups put in front; the indentation stays."""
    return _GROUP.sub("", _RANK.sub("", _ORIGIN.sub("", line))).rstrip()


@functools.cache
def _causes() -> tuple[_Known, ...]:
    """What is known, the first match wins."""
    rows = json.loads(resources.files("cpt_launcher").joinpath("data", "causes.json").read_text(encoding="utf-8"))
    return tuple(_Known(row["id"], re.compile(row["match"]), row["means"], row["next"], row["retry"]) for row in rows)
