"""What a training is doing, from what it prints and logs, as events; no effect of its own.

An event is a mapping with `event` (`phase`, `step`, `eval`, `checkpoint` or `end`) and `time` (seconds
since the epoch, when it was seen). Figures come from LLaMA-Factory's `trainer_log.jsonl` (train/callbacks.py,
LogCallback).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cpt_launcher import jsontext
from cpt_launcher.runs.forecast import Forecast

Event = dict[str, object]
STARTING, TRAINING, FINISHING, STOPPING = "starting Ray", "training", "finishing", "stopping the workers"
EVALUATING, SAVING = "evaluating", "saving"
BASE = "evaluating the base model"
EVALUATIONS = (EVALUATING, BASE)
# A phase begins with the first line that matches; lines that match none leave it as it is.
PHASES = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (
            r"Started a local Ray instance|Connecting to existing Ray cluster|Connected to Ray cluster",
            "starting workers",
        ),
        (r"Started distributed worker processes|Setting up process group", "loading the stack in the workers"),
        (r"Loading dataset|Running tokenizer on dataset|Loaded tokenized dataset", "tokenising"),
        (r"loading weights file|Loading checkpoint shards|Instantiating \S+ model", "loading the model"),
        (r"\*{5} Running training \*{5}", TRAINING),
        (r"\*{5} Running Evaluation \*{5}", EVALUATING),
        (r"Saving model checkpoint to|Saving the model checkpoint", SAVING),
        (r"\*{5} train metrics \*{5}", FINISHING),
    )
)
ORDER = (STARTING, *(phase for _, phase in PHASES[:5]))
# Of transformers' Trainer (trainer.py, trainer_callback.py).
_TOTAL = re.compile(r"Total optimization steps = ([\d,]+)")
_RESUMED = re.compile(r"Continuing training from global step (\d+)")
_SAVED = re.compile(r"Saving model checkpoint to \S*checkpoint-(\d+)")
_EVALUATED = re.compile(r"'eval_(\w+_)?loss': |\*{5} eval metrics \*{5}")
# A bar of tqdm without a description; one below another is followed by the way back up.
_BAR = re.compile(r"\s*\d+%\|[^|]*\| (?P<done>\d+)/(?P<total>\d+) \[(?P<took>[\d:]+)<(?P<left>[\d:]+|\?)")
_BELOW = "\x1b[A"
SAID_SECONDS, SAID_SHARE = 15.0, 0.05  # an evaluation is told of no more often: at most some twenty times


@dataclass(frozen=True)
class Bar:
    """How far an evaluation is, in batches, as seen at `at`; `took` and `left` are seconds, None where not known."""

    done: int
    total: int
    took: float
    left: float | None
    at: float

    def left_at(self, now: float) -> float | None:
        return None if self.left is None else max(self.left - (now - self.at), 0.0)


def read_bar(line: str, now: float) -> Bar | None:
    """The bar that is a line of output, where it is one."""
    found = _BAR.match(line)
    if found is None or int(found["total"]) < 1:
        return None
    left = None if found["left"] == "?" else _seconds(found["left"])
    return Bar(int(found["done"]), int(found["total"]), _seconds(found["took"]), left, now)


def _seconds(clock: str) -> float:
    """Of `1:02:03` or `02:03`."""
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part or 0)
    return float(seconds)


@dataclass
class Progress:
    """Follows one attempt. `tokens_per_step` counts all workers, 0 where it is not known; `train` are LLaMA-Factory's
    arguments. `bar` is there during an evaluation.
    """

    workers: int
    tokens_per_step: int
    train: Mapping[str, object] = field(default_factory=dict)
    phase: str = STARTING
    step: int = 0
    total: int = 0
    bar: Bar | None = None
    forecast: Forecast = field(default_factory=Forecast)
    _began: bool = False
    _resumed: bool = False
    _after: str = TRAINING  # the phase after an evaluation
    _said: float = 0.0

    def line(self, line: str, now: float) -> Event | None:
        """The phase that a line of output begins, or how far an evaluation is, if it says so."""
        if self.phase == STOPPING:
            return None
        if bar := read_bar(line, now):
            return self._on_bar(bar, below=_BELOW in line)
        self._note(line, now)
        phase = next((phase for pattern, phase in PHASES if pattern.search(line)), None)
        if phase is None or phase == self.phase:
            return None
        if phase in ORDER and self.phase in ORDER and ORDER.index(phase) < ORDER.index(self.phase):
            return None  # a straggling worker
        if phase in ORDER[:-1] and self.phase not in ORDER:
            return None
        return self._begin(phase, now)

    def _note(self, line: str, now: float) -> None:
        """Facts in a line that are no phase."""
        if found := _TOTAL.search(line):
            self.total = int(found[1].replace(",", ""))
        elif found := _RESUMED.search(line):
            self.step, self._resumed = int(found[1]), True
            self.forecast.start(self.step, now)
        elif found := _SAVED.search(line):
            self.forecast.pause("save", int(found[1]), now)
        elif _EVALUATED.search(line):
            self._evaluated(now)

    def _begin(self, phase: str, now: float) -> Event:
        if phase == TRAINING and not self._began:
            self._began = True
            self.forecast.start(self.step, now)
        elif phase == EVALUATING:
            self._after = self.phase if self.phase == FINISHING else TRAINING
            self.bar, self._said = None, now
            self.forecast.pause("evaluation", self.step, now)
            phase = BASE if self.step == 0 and not self._resumed else EVALUATING
        self.phase = phase
        return {"event": "phase", "time": now, "phase": phase}

    def _on_bar(self, bar: Bar, *, below: bool) -> Event | None:
        if self.phase in EVALUATIONS and (below or self._after == FINISHING or not self._began):
            self.bar = bar
            whole = bar.took + (bar.left or 0)
            self.forecast.expected = whole
            if bar.left is None or bar.done == bar.total or bar.at - self._said < max(SAID_SECONDS, SAID_SHARE * whole):
                return None
            self._said = bar.at
            event: Event = {"event": "phase", "time": bar.at, "phase": self.phase}
            return {**event, "done": bar.done, "of": bar.total, "seconds_left": bar.left}
        if self._began and not below and bar.total == self.total and bar.done > self.step:
            self.step = bar.done
            self.forecast.mark(bar.done, bar.at, at_once=True)
            self.phase = TRAINING if self.phase in (*EVALUATIONS, SAVING) else self.phase
        return None

    def _evaluated(self, now: float) -> None:
        self.forecast.resume(now)
        self.bar = None
        if self.phase in EVALUATIONS:
            self.phase = self._after

    def left(self, now: float) -> float | None:
        """Seconds until the last step is made, evaluated and saved, as far as can be told."""
        return self.forecast.left(self.total, self.train, now)

    def row(self, text: str, now: float) -> Event | None:
        """The step or evaluation in a line of trainer_log.jsonl; None for other rows and for what is no row."""
        row = parse(text)
        step, total, loss = row.get("current_steps"), row.get("total_steps"), row.get("loss")
        if not isinstance(step, int) or not jsontext.is_count(step):
            return None
        self.step = max(step, self.step)  # also of the last row, which has no loss
        if jsontext.is_number(row.get("eval_loss")):
            self._evaluated(now)
            return {"event": "eval", "time": now, "step": step, "loss": row["eval_loss"], "phase": self.phase}
        if not jsontext.is_number(loss):
            return None
        self.total = total if isinstance(total, int) and jsontext.is_count(total) else self.total
        self.forecast.mark(step, now, at_once=False)
        event: Event = {"event": "step", "time": now, "step": step, "total": self.total, "loss": loss}
        event |= {
            name: row[key] for key, name in (("lr", "lr"), ("epoch", "epoch")) if jsontext.is_number(row.get(key))
        }
        if self.phase in (SAVING, *ORDER[:-1]):
            self.phase = TRAINING
        return {**event, "phase": self.phase, **self._rates(now)}

    def _rates(self, now: float) -> Event:
        each, left = self.forecast.seconds_per_step(), self.left(now)
        if not each:
            return {}
        rates: Event = {"seconds_per_step": round(each, 4)}
        if left is not None:
            rates["seconds_left"] = round(left, 1)
        if self.tokens_per_step:
            rates["tokens_per_second"] = round(self.tokens_per_step / each, 1)
            rates["tokens_per_second_per_worker"] = round(self.tokens_per_step / each / self.workers, 1)
        return rates


def how_far(state: Progress, now: float) -> Bar | None:
    """What a bar can show now: of an evaluation its batches, of a training its steps; None where neither goes on."""
    if state.phase in EVALUATIONS:
        return replace(state.bar, left=state.bar.left_at(now)) if state.bar else None
    if state.phase not in (TRAINING, SAVING) or not state.total:
        return None
    return Bar(state.step, state.total, 0.0, state.left(now), now)


def telling(say: Callable[[str], None], clock: Callable[[], float] = time.time) -> Callable[[str], None]:
    """Takes the output of an evaluation beside any training, and says now and then how far it is."""
    state = Progress(1, 0, _resumed=True)

    def take(line: str) -> None:
        event = state.line(line, clock())
        if event and "done" in event:
            say(describe(event))

    return take


def parse(text: str) -> Mapping[str, object]:
    """A line of JSON; empty for the half-written last line of a killed run, and for anything else."""
    try:
        value = jsontext.parse(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def sound(event: Mapping[str, object]) -> Event | None:
    """An event from a file, without figures that are none; None where it lacks what its kind must have."""
    kind = event.get("event")
    if kind in ("step", "eval", "checkpoint") and not jsontext.is_count(event.get("step")):
        return None
    if kind in ("step", "eval") and not jsontext.is_number(event.get("loss")):
        return None
    return {key: value for key, value in event.items() if isinstance(value, str) or jsontext.is_number(value)}


def describe(event: Mapping[str, object]) -> str:
    """An event in a line for a person."""
    kind = event.get("event")
    if kind == "step":
        return f"step {event['step']}/{event.get('total') or '?'}  {figures(event)}"
    if kind == "eval":
        return f"held out at step {event['step']}: {held_out(event['loss'])}"
    if kind == "checkpoint":
        return f"saved checkpoint-{event['step']} ({size(event.get('bytes'))})"
    return f"{event.get('phase') or event.get('state') or kind}{_how_far(event)}"


def _how_far(event: Mapping[str, object]) -> str:
    done, total, left = event.get("done"), event.get("of"), event.get("seconds_left")
    if not isinstance(done, int) or not isinstance(total, int) or not isinstance(left, int | float):
        return ""
    return f" {done}/{total}, {duration(left)} left"


def figures(event: Mapping[str, object]) -> str:
    """Loss, learning rate, rate and time left of a step."""
    parts = [f"loss {event['loss']:.4f}"]
    if isinstance(lr := event.get("lr"), int | float):
        parts.append(f"lr {lr:.2e}")
    if isinstance(rate := event.get("tokens_per_second"), int | float):
        parts.append(f"{rate:,.0f} tokens/s ({event.get('tokens_per_second_per_worker', rate):,.0f} per worker)")
    if isinstance(left := event.get("seconds_left"), int | float):
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def left_at(event: Mapping[str, object], now: float) -> float | None:
    """What is left of the `seconds_left` of an event that is not of this moment."""
    left, then = event.get("seconds_left"), event.get("time")
    if not isinstance(left, int | float):
        return None
    return max(left - max(now - then, 0.0), 0.0) if isinstance(then, int | float) else left


def held_out(loss: object) -> str:
    """A mean loss per token, in nats, and its perplexity."""
    assert isinstance(loss, int | float)
    return f"loss {loss:.4f}, perplexity {math.exp(min(loss, 700)):,.2f}"


def duration(seconds: float) -> str:
    """`0:01:05`, or `2 d 3:04:05`."""
    if not math.isfinite(seconds):
        return "?"
    whole = int(seconds)
    clock = f"{whole % 86400 // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
    return f"{whole // 86400} d {clock}" if whole >= 86400 else clock


def size(count: object) -> str:
    """`17.2 MB`, in powers of ten."""
    value = float(count) if isinstance(count, int | float) and jsontext.is_number(count) else 0.0
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
