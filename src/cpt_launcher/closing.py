"""What is written once a run has ended, however it ended: its record, the loss plot, and MLflow's share of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from cpt_launcher import disk, history, plots, progress, record, token_count, tracker, urls
from cpt_launcher.errors import CptError
from cpt_launcher.plan import Plan
from cpt_launcher.ray_worker import RUN_NAME
from cpt_launcher.record import Record, State
from cpt_launcher.secrets import redact, values

Say = Callable[[str], None]


def open_tracking(plan: Plan, environ: Mapping[str, str], known: str | None, say: Say) -> str | None:
    """The MLflow run that belongs to this one; None without tracking, or where MLflow fails, which is only worth a
    word: training does not wait for a tracker.
    """
    if not plan.tracked:
        return None
    env = {**environ, **plan.env}
    tags = {"cpt.run": plan.layout.run, "cpt.storage": str(plan.layout.storage), "cpt.model": plan.model}
    try:
        return tracker.begin(env, env["MLFLOW_EXPERIMENT_NAME"], plan.layout.run, plan.layout.storage, known, tags)
    except Exception as error:  # noqa: BLE001
        say(f"warning: MLflow did not take the run ({_reason(error, plan, environ)})")
        return None


def settings(run: str, mlflow_run: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that have the workers' MLflow go on in that run, and not wait for a server that is gone."""
    patience = {name: environ.get(name, value) for name, value in tracker.PATIENCE.items()}
    return {"MLFLOW_RUN_ID": mlflow_run, RUN_NAME: run, **patience} if mlflow_run else {}


def tokens(plan: Plan) -> Mapping[str, object] | None:
    """What `cpt tokenize` counted where the run uses that; else the workers, in the newest attempt that tokenised."""
    layout = plan.layout
    if plan.tokens and plan.tokenized and (marker := layout.tokenized_marker(plan.tokens)).is_file():
        return progress.parse(marker.read_text(encoding="utf-8"))
    for path in sorted(layout.token_counts.glob("*.jsonl"), reverse=True):
        if found := token_count.total(path.read_text(encoding="utf-8", errors="replace").splitlines()):
            return found
    return None


def close(
    plan: Plan, environ: Mapping[str, str], known: Record, state: State, code: int, cause: str | None, say: Say
) -> None:
    """Record the end. What cannot be drawn or tracked is only worth a word."""
    record.end(plan.layout, known, state, code, cause, tokens(plan))
    found = history.load(plan.layout)
    try:
        if drawn := plots.png(found):
            disk.write_bytes(plan.layout.loss_plot, drawn)
    except (ImportError, CptError) as error:
        say(f"warning: no loss plot: {error}")
    if known.mlflow_run is None:
        return
    layout = plan.layout
    figures = {f"held_out_perplexity_{name}": math.exp(min(loss, 700)) for name, loss in _held_out(found).items()}
    try:
        files = (layout.train_yaml, layout.run_json, layout.loss_plot)
        tracker.finish({**environ, **plan.env}, known.mlflow_run, state, files, figures)
    except Exception as error:  # noqa: BLE001
        say(f"warning: MLflow did not take the run's end ({_reason(error, plan, environ)})")


def _held_out(run: history.Run) -> dict[str, float]:
    """Losses on what was held out, of the base model (step 0) and of the trained one."""
    base = [event for event in run.evals if event["step"] == 0]
    rows = {"base": base[:1], "trained": [event for event in run.evals if event["step"] != 0][-1:]}
    return {name: float(str(row[0]["loss"])) for name, row in rows.items() if row}


def _reason(error: Exception, plan: Plan, environ: Mapping[str, str]) -> str:
    text = urls.shown(f"{type(error).__name__}: {error}".splitlines()[0])
    return redact(text, values(plan.secrets, environ))
