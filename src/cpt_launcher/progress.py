"""What a training is doing, from what it prints and logs, as events; no effect of its own.

An event is a mapping with `event` (`phase`, `step`, `eval`, `checkpoint` or `end`) and `time` (seconds
since the epoch, when it was seen). Figures come from LLaMA-Factory's `trainer_log.jsonl` (train/callbacks.py,
LogCallback).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from cpt_launcher import jsontext

Event = dict[str, object]
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
        (r"\*{5} Running training \*{5}", "training"),
        (r"\*{5} Running Evaluation \*{5}", "evaluating"),
        (r"Saving model checkpoint to|Saving the model checkpoint", "saving"),
        (r"\*{5} train metrics \*{5}", "finishing"),
    )
)
ORDER = ("starting Ray", *(phase for _, phase in PHASES[:5]))
STOPPING = "stopping the workers"
WINDOW = 20


@dataclass
class Progress:
    """Follows one attempt. `tokens_per_step` counts all workers, 0 where it is not known."""

    workers: int
    tokens_per_step: int
    phase: str = "starting Ray"
    step: int = 0
    total: int = 0
    _seen: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _began: float | None = None

    def line(self, line: str, now: float) -> Event | None:
        """The phase that a line of output begins, if it begins one."""
        if self.phase == STOPPING:
            return None
        phase = next((phase for pattern, phase in PHASES if pattern.search(line)), None)
        if phase is None or phase == self.phase:
            return None
        if phase in ORDER and self.phase in ORDER and ORDER.index(phase) < ORDER.index(self.phase):
            return None  # a straggling worker
        if phase in ORDER[:-1] and self.phase not in ORDER:
            return None
        if phase == "training" and self._began is None:
            self._began = now
        self.phase = phase
        return {"event": "phase", "time": now, "phase": phase}

    def row(self, text: str, now: float) -> Event | None:
        """The step or evaluation in a line of trainer_log.jsonl; None for other rows and for what is no row."""
        row = parse(text)
        step, total, loss = row.get("current_steps"), row.get("total_steps"), row.get("loss")
        if not isinstance(step, int) or not jsontext.is_count(step):
            return None
        self.step = step  # also of the last row, which has no loss
        if jsontext.is_number(row.get("eval_loss")):
            return {"event": "eval", "time": now, "step": step, "loss": row["eval_loss"]}
        if not jsontext.is_number(loss):
            return None
        self.total = total if isinstance(total, int) and jsontext.is_count(total) else self.total
        per_step = self._seconds_per_step(step, now)
        self._seen.append((step, now))
        event: Event = {"event": "step", "time": now, "step": step, "total": self.total, "loss": loss}
        event |= {
            name: row[key] for key, name in (("lr", "lr"), ("epoch", "epoch")) if jsontext.is_number(row.get(key))
        }
        if per_step:
            event["seconds_per_step"] = round(per_step, 4)
            event["seconds_left"] = round(per_step * max(self.total - step, 0), 1)
            if self.tokens_per_step:
                event["tokens_per_second"] = round(self.tokens_per_step / per_step, 1)
                event["tokens_per_second_per_worker"] = round(self.tokens_per_step / per_step / self.workers, 1)
        training = self.phase in ("saving", "evaluating", *ORDER[:-1])
        self.phase = "training" if training else self.phase
        return event

    def _seconds_per_step(self, step: int, now: float) -> float | None:
        """Over the last rows; for the first one, since the training began, unless it resumes from a checkpoint."""
        if self._seen:
            first, then = self._seen[0]
            return (now - then) / (step - first) if step > first and now > then else None
        return (now - self._began) / step if self._began is not None and now > self._began and step < 50 else None


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
    return str(event.get("phase") or event.get("state") or kind)


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
