"""How fast a training goes and how long it will still take: steps, evaluations and saves, each measured apart.

All times are seconds; moments are seconds since the epoch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from cpt_launcher.config import arguments

WINDOW = 50  # steps that were seen, over which the rate is taken


@dataclass(frozen=True)
class Rhythm:
    """After every how many steps a training does something, 0 for never, and whether it does at its end anyway."""

    every: int = 0
    at_end: bool = False

    def to_come(self, step: int, done: int, total: int) -> int:
        """How often from `step` on, that one included, where it was last done after step `done`."""
        first = max(step, done + 1, 1)
        between = max(total // self.every - (first - 1) // self.every, 0) if self.every else 0
        last = self.at_end and done < total and not (self.every and total % self.every == 0)
        return between + last


def evaluations(train: Mapping[str, object], total: int) -> Rhythm:
    """When a training of `total` steps evaluates. LLaMA-Factory also does after the training (train/pt/workflow.py),
    which is left out where the last step was evaluated (see `ray_worker`).
    """
    strategy = train.get("eval_strategy", "no")
    if not (train.get("eval_dataset") or train.get("val_size")):
        return Rhythm()
    name = "eval_steps" if train.get("eval_steps") is not None else "logging_steps"
    return Rhythm(_every(train, strategy, name, total), bool(train.get("do_eval")) or strategy != "no")


def saves(train: Mapping[str, object], total: int) -> Rhythm:
    """When it saves a checkpoint; by steps, the last one is saved too (transformers, trainer_callback.py)."""
    strategy = train.get("save_strategy", "steps")
    return Rhythm(_every(train, strategy, "save_steps", total), strategy == "steps")


def _every(train: Mapping[str, object], strategy: object, name: str, total: int) -> int:
    if strategy == "epoch":
        epochs, limit = train.get("num_train_epochs", 3.0), train.get("max_steps", -1)
        known = isinstance(epochs, int | float) and epochs > 0 and isinstance(limit, int) and limit < 1
        return math.ceil(total / math.ceil(epochs)) if known and isinstance(epochs, int | float) else 0
    given = train.get(name, arguments.load().arguments[name].default)
    if strategy != "steps" or not isinstance(given, int | float) or not 0 < given < 10**9:
        return 0
    return int(given) if given >= 1 else math.ceil(total * given)


@dataclass
class _Pause:
    kind: str
    step: int
    began: float


@dataclass
class Forecast:
    """A clock of the steps alone, which stands still while the training evaluates or saves. `evaluation` and `save`:
    what the last one took, None before the first. `expected`: what the first evaluation is going to take.
    """

    evaluation: float | None = None
    save: float | None = None
    expected: float = 0.0
    evaluated: int = 0
    saved: int = 0
    _marks: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _start: tuple[int, float] | None = None
    _pause: _Pause | None = None
    _paused: float = 0.0

    def start(self, step: int, now: float) -> None:
        """The training begins after `step`: 0, or that of the checkpoint that it resumes from."""
        self._marks.clear()
        self._start = (step, self._clock(now))
        self.evaluated = self.saved = step

    def mark(self, step: int, now: float, *, at_once: bool) -> None:
        """A step was made; `at_once` where that is seen when it happens, not when somebody looks."""
        pause = self._pause
        if pause and step > pause.step:
            if pause.kind == "save" or at_once:
                self._end(now, step - pause.step)
            else:
                pause.step = step  # made before the evaluation, and seen now
        if step > (self._marks or [self._start or (-1, 0.0)])[-1][0]:
            self._marks.append((step, self._clock(now)))

    def pause(self, kind: str, step: int, now: float) -> None:
        """An evaluation or a save begins, after `step`."""
        if self._pause and self._pause.kind == "evaluation":
            self._end(now, 0)
        self._pause = _Pause(kind, step, now)

    def resume(self, now: float) -> None:
        """An evaluation has ended. When a save ends is not said: that is seen by the step after it."""
        if self._pause and self._pause.kind == "evaluation":
            self._end(now, 0)

    def seconds_per_step(self) -> float | None:
        """Over the last steps that were seen; after the first one, since the start; None where that is not known."""
        marks = [*self._marks] if len(self._marks) > 1 or not self._start else [self._start, *self._marks]
        if len(marks) < 2:
            return None
        (first, began), (last, ended) = marks[0], marks[-1]
        return (ended - began) / (last - first) if ended > began else None

    def left(self, total: int, train: Mapping[str, object], now: float) -> float | None:
        """Seconds until the last of `total` steps is made, evaluated and saved."""
        each = self.seconds_per_step()
        if each is None or not total:
            return None
        step, at = self._marks[-1]
        evaluated = evaluations(train, total).to_come(step, self.evaluated, total) * (self.evaluation or self.expected)
        saved = saves(train, total).to_come(step, self.saved, total) * (self.save or 0)
        since = (now - self._pause.began if self._pause else 0) + self._clock(now) - at
        return max(max(total - step, 0) * each + evaluated + saved - since, 0.0)

    def _clock(self, now: float) -> float:
        return (min(now, self._pause.began) if self._pause else now) - self._paused

    def _end(self, now: float, steps: int) -> None:
        """The pause has ended, and `steps` were made since."""
        pause, each = self._pause, self.seconds_per_step()
        self._pause = None
        if pause is None or (steps and each is None):
            return
        took = max(now - pause.began - steps * (each or 0), 0.0)
        self._paused += took
        if pause.kind == "save":
            self.save, self.saved = took, pause.step
        elif self.evaluation is not None and pause.step == self.evaluated:
            self.evaluation += took  # of several datasets, one after the other
        else:
            self.evaluation, self.evaluated = took, pause.step
