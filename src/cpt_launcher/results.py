"""Reading what a run left in its output folder and its log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# `ValueError: text` at the start of a line, once the `(RayTrainWorker pid=1, ip=...)` before it is gone.
# RayTaskError(ValueError) only wraps another one and does not match.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ORIGIN = re.compile(r"^\([\w.:]+ pid=[^)]*\) ?")
_ERROR = re.compile(r"^(?:\w+\.)*\w+(?:Error|Exception)(?:: .+)?$")
_WRAPPED = "The above exception was the direct cause of the following exception"


@dataclass(frozen=True)
class Results:
    """A run's output: losses are means over `logging_steps` steps, as LLaMA-Factory logs them."""

    steps: int
    first_loss: float
    last_loss: float
    checkpoints: tuple[Path, ...]
    plot: Path | None


def read(output: Path) -> Results | None:
    """The results under `output`; None where nothing was logged."""
    points = [(point["current_steps"], point["loss"]) for point in _log(output) if "loss" in point]
    if not points:
        return None
    plot = output / "training_loss.png"
    return Results(
        steps=int(points[-1][0]),
        first_loss=points[0][1],
        last_loss=points[-1][1],
        checkpoints=checkpoints(output),
        plot=plot if plot.is_file() else None,
    )


def checkpoints(output: Path) -> tuple[Path, ...]:
    """The `checkpoint-STEP` folders under an output folder, oldest first."""
    found = [path for path in output.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    return tuple(sorted(found, key=lambda path: int(path.name.partition("-")[2])))


def is_complete(checkpoint: Path, workers: int) -> bool:
    """Whether a checkpoint was written to its end. Rank 0 writes trainer_state.json last (transformers 4.52,
    Trainer._save_checkpoint), after DeepSpeed's shards and its own random state; every rank has one of those.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    states = len(list(checkpoint.glob("rng_state*.pth")))
    return states in (0, workers) or not (checkpoint / "latest").is_file()


def trained_since(output: Path, moment: float) -> bool:
    """Whether a training ended well after `moment` (seconds since the epoch): LLaMA-Factory writes its
    train_results.json last (train/pt/workflow.py).
    """
    results = output / "train_results.json"
    return results.is_file() and results.stat().st_mtime >= moment - 1


def cause(lines: Iterable[str]) -> str | None:
    """The innermost exception of the first failure in a log, without the worker it came from."""
    found = None
    for line in lines:
        plain = _ORIGIN.sub("", _COLOUR.sub("", line)).strip()
        if _WRAPPED in plain and found:
            break
        if _ERROR.match(plain):
            found = plain
    return found


def _log(output: Path) -> list[dict[str, float]]:
    path = output / "trainer_log.jsonl"
    points = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                points.append(json.loads(line))
            except ValueError:  # the last line of a killed run may be half-written
                continue
    return [point for point in points if isinstance(point, dict)]
