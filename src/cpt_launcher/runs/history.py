"""The runs on a storage, from what they wrote there: nothing is asked of the machines they run on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cpt_launcher import jsontext, shipped
from cpt_launcher.config import read
from cpt_launcher.errors import ConfigError, NotReadyError, Problem, StorageError
from cpt_launcher.layout import Layout
from cpt_launcher.runs import events as progress
from cpt_launcher.runs import record

UNREADABLE = "unreadable"
_RATES = ("seconds_per_step", "seconds_left", "tokens_per_second", "tokens_per_second_per_worker")


@dataclass(frozen=True)
class Run:
    """One run: its record, its events of every kind that matters, newest last; `restarts` are the steps at which it
    resumed after an end. `evaluating`: how far a running evaluation is. `last`: the last step that was made, whose loss
    may not have been logged. What happens now (`phase`, `evaluating`, rates and time left of the last of `steps`) is
    known from the last start alone; an ended run is in no phase.
    """

    layout: Layout
    record: Mapping[str, object]
    steps: tuple[progress.Event, ...]
    phase: str
    saved: progress.Event | None
    evals: tuple[progress.Event, ...] = ()
    restarts: tuple[int, ...] = ()
    evaluating: progress.Event | None = None
    last: int = 0

    @property
    def state(self) -> str:
        return str(self.record["state"])

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names that its config has under `secrets:`."""
        names = self.record.get("secrets")
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def runs(storage: Path) -> tuple[Run, ...]:
    """Every run on a storage, the newest first; one that cannot be read is there by its name, and says why."""
    found = []
    for path in storage.glob("*/cpt"):
        layout = Layout(storage, path.parent.name)
        if not os.path.lexists(layout.run_json):
            continue
        try:
            found.append(load(layout))
        except NotReadyError as error:
            known = {"run": layout.run, "state": UNREADABLE, "cause": error.problems[0].what}
            found.append(Run(layout, known, (), "", None))
    return tuple(sorted(found, key=lambda run: str(run.record.get("started") or ""), reverse=True))


def find(text: str, storage: Path | None, environ: Mapping[str, str]) -> Run:
    """A run by its folder, by its config, or by its name on a storage (else on $CPT_STORAGE).

    Raises:
        ConfigError: there is none.
        StorageError: there is no such storage.
    """
    path = Path(text)
    if path.is_dir() and os.path.lexists(path / "cpt" / "run.json"):
        layout = Layout(path.absolute().parent, path.absolute().name)
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        config = read.read(path, [f"storage={storage}"] if storage else [])
        layout = Layout(choose_storage(config.storage, environ), config.name)
    else:
        layout = Layout(choose_storage(storage, environ), text)
    if not os.path.lexists(layout.run_json):
        names = ", ".join(run.layout.run for run in runs(layout.storage)[:10]) or "none"
        hint = f"runs there: {names}. RUN is a run's folder, its config, or its name with --storage DIR"
        raise ConfigError(Problem(f"there is no run {layout.run}", str(layout.storage), hint))
    return load(layout)


def choose_storage(storage: Path | None, environ: Mapping[str, str]) -> Path:
    """The folder given, else $CPT_STORAGE.

    Raises:
        ConfigError: neither is given.
        StorageError: it is no folder.
    """
    given = storage or (Path(environ["CPT_STORAGE"]) if environ.get("CPT_STORAGE") else None)
    if given is None:
        raise ConfigError(Problem("which storage?", "command line", "--storage DIR, or export CPT_STORAGE=DIR"))
    if not given.is_dir():
        raise StorageError(Problem("the storage is not there", str(given), "check the path; is it mounted?"))
    return shipped.from_user(str(given))


def load(layout: Layout) -> Run:
    """What is known of a run that has a run.json.

    Raises:
        NotReadyError: run.json or the events cannot be read.
    """
    known = record.read(layout)
    if known is None:
        raise NotReadyError(Problem("there is no run.json", str(layout.run_json), "cpt runs shows the runs there are"))
    try:
        return _follow(layout, known)
    except OSError as error:
        hint = "you need to be let in to read it"
        raise NotReadyError(Problem(f"cannot read it: {error.strerror}", str(layout.events), hint)) from None


def _follow(layout: Layout, known: Mapping[str, object]) -> Run:
    steps: list[progress.Event] = []
    evals: dict[int, progress.Event] = {}
    restarts: list[int] = []
    phase, saved, evaluating, ended, last = "", None, None, False, 0
    newest: progress.Event = {}
    for event in events(layout):
        newest = event
        kind = event.get("event")
        if kind == "step":
            phase = str(event.get("phase") or progress.TRAINING)
            while steps and steps[-1]["step"] >= event["step"]:  # type: ignore[operator]
                steps.pop()  # done again after a restart
            if ended and steps:
                restarts.append(int(str(steps[-1]["step"])))
            ended = False
            steps.append(event)
            last = int(str(event["step"]))
        elif kind == "eval":
            phase = str(event.get("phase") or progress.TRAINING)
            evals[int(str(event["step"]))] = event
        elif kind == "end":
            ended, step = True, event.get("step")
            last = max(last, step) if isinstance(step, int) and jsontext.is_count(step) else last
        elif kind == "phase":
            phase, evaluating = str(event.get("phase")), event if "done" in event else None
            ended = ended or phase in progress.ORDER[:2]
        elif kind == "checkpoint":
            phase = progress.TRAINING if phase == progress.SAVING else phase
            saved = event
    found = tuple(evals[at] for at in sorted(evals))
    if known["state"] == "running" and steps and (ended or _is_before_start(steps[-1], known)):
        steps[-1] = {key: value for key, value in steps[-1].items() if key not in _RATES}
    if known["state"] != "running" or _is_before_start(newest, known):
        phase = ""
    evaluating = evaluating if phase in progress.EVALUATIONS else None
    return Run(layout, known, tuple(steps), phase, saved, found, tuple(restarts), evaluating, last)


def _is_before_start(event: progress.Event, known: Mapping[str, object]) -> bool:
    """Whether an event is older than the last start that run.json tells of."""
    try:
        start = datetime.fromisoformat(str(known.get("started"))).timestamp()
    except ValueError:
        return False
    at = event.get("time")
    return isinstance(at, int | float) and at < start


def events(layout: Layout) -> Iterator[progress.Event]:
    """The events of a run, oldest first; lines that are none, and those that lack what they must have, are passed
    over.
    """
    if layout.events.is_file():
        with layout.events.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if value := progress.sound(progress.parse(line)):
                    yield value


def follow(layout: Layout, lines: int) -> Iterator[str]:
    """The last `lines` lines of a run's log, then what comes, until the run has ended. For a view that does not follow,
    take the first `lines`.
    """
    log = layout.train_log
    if not log.is_file():
        return
    with log.open(encoding="utf-8", errors="replace") as file:
        yield from tail(file.read(), lines)
        while True:
            running = (record.read(layout) or {}).get("state") == "running"
            for line in file:
                yield line.rstrip("\n")
            if not running:
                return
            time.sleep(0.5)


def tail(text: str, lines: int) -> list[str]:
    """The last lines of a text; 0 gives all."""
    return text.splitlines()[-lines:]
