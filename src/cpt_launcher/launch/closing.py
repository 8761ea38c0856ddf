"""A run while it is recorded as running, and what is written once it has ended, however it ended: its record, the loss
plot, and MLflow's share of both.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TypeVar

from cpt_launcher import disk, urls
from cpt_launcher.errors import CptError, InterruptedRunError, TrainingError
from cpt_launcher.launch import tracking
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import Plan
from cpt_launcher.runs import events, history, plots, record
from cpt_launcher.runs.record import Record, State
from cpt_launcher.secrets import redact, values
from cpt_launcher.stack import tokens as token_count
from cpt_launcher.stack.worker import RUN_NAME

Say = Callable[[str], None]
T = TypeVar("T")


class Recording:
    """A run that run.json says is running. `cause` is what the end will be put down to, where that is not the words of
    the exception; `step` the last one that was made.
    """

    def __init__(self, plan: Plan, environ: Mapping[str, str], started: Record, say: Say) -> None:
        self.record = started
        self.cause: str | None = None
        self.step = 0
        self._plan, self._environ, self._say = plan, environ, say

    def track(self, earlier: object) -> None:
        """Open the MLflow run that belongs to it: the `earlier` one of a run that is resumed, else a new one."""
        known = earlier if isinstance(earlier, str) else None
        if mlflow_run := open_tracking(self._plan, self._environ, known, self._say):
            self.record = replace(self.record, mlflow_run=mlflow_run)
            record.write(self._plan.layout, self.record)

    def restarted(self, cause: str, step: int) -> None:
        """An attempt failed at `step` and another one begins."""
        self.record = record.restarted(self._plan.layout, self.record, cause, step)

    def end(self, state: State, code: int, cause: str | None) -> None:
        """Write how it ended, then what can be counted, drawn and tracked; none of it hides how the training ended."""
        layout = self._plan.layout
        ended = self._tried("run.json does not say how it ended", record.end, layout, self.record, state, code, cause)
        self.record = ended or self.record
        self._tried("the tokens are not counted", self._count)
        self._tried("no loss plot", _draw, layout)
        if self.record.mlflow_run:
            self._tried("MLflow did not take the run's end", _track, self._plan, self._environ, self.record, state)

    def _count(self) -> None:
        layout = self._plan.layout
        counted = replace(self.record, tokens=tokens(self._plan))
        if logged := history.load(layout).steps:
            at, epochs = int(str(logged[-1]["step"])), logged[-1].get("epoch")
            step = self.step or at
            epochs = epochs * step / at if isinstance(epochs, int | float) and at else None
            counted = replace(counted, trained_on=record.trained(asdict(counted), step, epochs))
        self.record = counted
        record.write(layout, counted)

    def _tried(self, what: str, do: Callable[..., T], *given: object) -> T | None:
        try:
            return do(*given)
        except Exception as error:  # noqa: BLE001 - whatever fails now, how the training ended is what counts
            self._say(f"warning: {what} ({_reason(error, self._plan, self._environ)})")
            return None


@contextlib.contextmanager
def recording(plan: Plan, environ: Mapping[str, str], started: Record, say: Say) -> Iterator[Recording]:
    """Whatever ends the context is recorded as the run's end, and propagates: a CptError with its exit code, a bug as a
    failure that has its name.
    """
    running = Recording(plan, environ, started, say)
    try:
        yield running
    except BaseException as error:
        asked = "a signal" if isinstance(error, KeyboardInterrupt) else running.cause
        running.end(*_ending(error, asked or _reason(error, plan, environ)))
        raise
    running.end("finished", 0, None)


def _ending(error: BaseException, cause: str) -> tuple[State, int, str]:
    if isinstance(error, KeyboardInterrupt | InterruptedRunError):
        return "interrupted", InterruptedRunError.exit_code, cause
    return "failed", error.exit_code if isinstance(error, CptError) else TrainingError.exit_code, cause


def open_tracking(plan: Plan, environ: Mapping[str, str], known: str | None, say: Say) -> str | None:
    """The MLflow run that belongs to this one; None without tracking, or where MLflow fails, which is only worth a
    word: training does not wait for a tracker.
    """
    if not plan.tracked:
        return None
    env = {**environ, **plan.env}
    tags = {"cpt.run": plan.layout.run, "cpt.storage": str(plan.layout.storage), "cpt.model": plan.model}
    try:
        return tracking.begin(env, env["MLFLOW_EXPERIMENT_NAME"], plan.layout.run, plan.layout.storage, known, tags)
    except Exception as error:  # noqa: BLE001
        say(f"warning: MLflow did not take the run ({_reason(error, plan, environ)})")
        return None


def settings(run: str, mlflow_run: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that have the workers' MLflow continue that run, and not wait for a server that is gone."""
    patience = {name: environ.get(name, value) for name, value in tracking.PATIENCE.items()}
    return {"MLFLOW_RUN_ID": mlflow_run, RUN_NAME: run, **patience} if mlflow_run else {}


def tokens(plan: Plan) -> Mapping[str, object] | None:
    """What `cpt tokenize` counted where the run uses that; else the workers, in the newest attempt that tokenised."""
    layout = plan.layout
    if plan.tokens and plan.tokenized and (marker := layout.tokenized_marker(plan.tokens)).is_file():
        return events.parse(marker.read_text(encoding="utf-8"))
    for path in sorted(layout.token_counts.glob("*.jsonl"), reverse=True):
        if found := token_count.total(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            return found
    return None


def _draw(layout: Layout) -> None:
    if drawn := plots.png(history.load(layout)):
        disk.write_bytes(layout.loss_plot, drawn)


def _track(plan: Plan, environ: Mapping[str, str], ended: Record, state: State) -> None:
    layout = plan.layout
    losses = _held_out(history.load(layout))
    figures = {f"held_out_perplexity_{name}": math.exp(min(loss, 700)) for name, loss in losses.items()}
    if ended.trained_on:
        figures["tokens_trained_on"] = float(str(ended.trained_on["tokens"]))
    files = (layout.train_yaml, layout.run_json, layout.loss_plot)
    tracking.finish({**environ, **plan.env}, str(ended.mlflow_run), state, files, figures)


def _held_out(run: history.Run) -> dict[str, float]:
    """Losses on what was held out, of the base model (step 0) and of the trained one."""
    base = [event for event in run.evals if event["step"] == 0]
    rows = {"base": base[:1], "trained": [event for event in run.evals if event["step"] != 0][-1:]}
    return {name: float(str(row[0]["loss"])) for name, row in rows.items() if row}


def _reason(error: BaseException, plan: Plan, environ: Mapping[str, str]) -> str:
    text = str(error) if isinstance(error, CptError) else f"{type(error).__name__}: {error}"
    text = urls.shown((text.splitlines() or [""])[0])
    return redact(text, values(plan.secrets, environ))
