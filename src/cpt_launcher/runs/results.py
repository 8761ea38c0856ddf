"""Reading what a run left in its output folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpt_launcher import jsontext
from cpt_launcher.runs import checkpoints


@dataclass(frozen=True)
class Results:
    """A run's output: losses are means over `logging_steps` steps, as LLaMA-Factory logs them. `base` and `trained` are
    those on what was held out, before the first step and after the last; None where nothing was. `tokens` and
    `trained_on` are those of run.json.
    """

    steps: int
    first_loss: float
    last_loss: float
    checkpoints: tuple[Path, ...]
    plot: Path | None
    base: float | None = None
    trained: float | None = None
    tokens: Mapping[str, object] | None = None
    trained_on: Mapping[str, object] | None = None


def read(output: Path) -> Results | None:
    """The results under `output`; None where nothing was logged."""
    rows = _log(output)
    points = [(row["current_steps"], row["loss"]) for row in rows if "loss" in row]
    held_out = {row["current_steps"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    if not points:
        return None
    last = int(rows[-1].get("current_steps", points[-1][0]))  # more than the last one whose loss was logged
    plot = output / "training_loss.png"
    return Results(
        steps=last,
        first_loss=points[0][1],
        last_loss=points[-1][1],
        checkpoints=tuple(item.path for item in checkpoints.find(output) if item.complete),
        plot=plot if plot.is_file() else None,
        base=held_out.get(0),
        trained=held_out.get(last, _evaluated_last(output)) if last else None,
    )


def _evaluated_last(output: Path) -> float | None:
    """The loss of the evaluation after the training, which LLaMA-Factory writes here alone (train/callbacks.py:
    `on_train_end` closes the log).
    """
    loss = jsontext.mapping(output / "eval_results.json").get("eval_loss")
    return loss if isinstance(loss, int | float) and jsontext.is_number(loss) else None


def evaluated_since(output: Path, moment: float) -> float | None:
    """The loss of the evaluation after a training, if there was one after `moment` (seconds since the epoch)."""
    found = output / "eval_results.json"
    return _evaluated_last(output) if found.is_file() and found.stat().st_mtime >= moment - 1 else None


def trained_since(output: Path, moment: float) -> bool:
    """Whether a training ended well after `moment` (seconds since the epoch): LLaMA-Factory writes its
    train_results.json last (train/pt/workflow.py).
    """
    results = output / "train_results.json"
    return results.is_file() and results.stat().st_mtime >= moment - 1


def _log(output: Path) -> list[dict[str, float]]:
    path = output / "trainer_log.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    rows = []
    for line in lines:
        try:
            row = jsontext.parse(line)
        except ValueError:  # the last line of a killed run may be half-written
            continue
        if isinstance(row, dict) and jsontext.is_count(row.get("current_steps")):
            rows.append({key: value for key, value in row.items() if jsontext.is_number(value)})
    return rows
