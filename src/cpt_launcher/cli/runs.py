"""The commands that look at runs: runs, status, logs, checkpoints, doctor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cpt_launcher.cli import show, which
from cpt_launcher.errors import ConfigError, NotReadyError, Problem, StorageError
from cpt_launcher.runs import checkpoints as saved
from cpt_launcher.runs import history

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its config, or its name on the storage.")]
Storage = Annotated[Path | None, typer.Option(help="The storage; else $CPT_STORAGE.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def runs(storage: Storage = None, as_json: AsJson = False) -> None:
    """The runs on a storage, the newest first."""
    found = history.runs(which.place(storage))
    if as_json:
        show.as_json([_as_json(run) for run in found])
    else:
        show.runs(found)


def status(run: Run, storage: Storage = None, as_json: AsJson = False) -> None:
    """What a run is doing, or how it ended."""
    found = which.run(run, storage)
    items = saved.find(_output(found), marked=found.record.get("checkpoints") == "marked")
    if as_json:
        whole = {item.path.name for item in items if item.complete}
        was = found.saved and f"checkpoint-{found.saved['step']}"
        show.as_json({**_as_json(found), "saved": found.saved if was in whole else _newest(items)})
    else:
        show.status(found, items)


def logs(
    run: Run,
    storage: Storage = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Show what is added too, until the run ends.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many of the last lines; 0 is all.")] = 100,
) -> None:
    """A run's log, secrets replaced by their names."""
    found = which.run(run, storage)
    log = found.layout.train_log
    if not log.is_file():
        raise ConfigError(Problem("the run has no log yet", str(log), "it is written once the training process starts"))
    if follow:
        for line in history.follow(found.layout, lines):
            show.answer(line)
    else:
        show.answer("\n".join(history.tail(_text(log), lines)))


def checkpoints(run: Run, storage: Storage = None, as_json: AsJson = False) -> None:
    """A run's checkpoints, and which can be resumed from."""
    found = which.run(run, storage)
    marked = found.record.get("checkpoints") == "marked"
    items = saved.find(_output(found), found.layout.run_dir, marked=marked)
    workers = found.record.get("workers")
    count = workers if isinstance(workers, int) else 1
    if as_json:
        rows = [
            {**asdict(item), "path": str(item.path), "complete": item.complete, "resumable": not item.resumable(count)}
            for item in items
        ]
        show.as_json(rows)
    else:
        held_out = {int(str(event["step"])): float(str(event["loss"])) for event in found.evals}
        show.checkpoints(items, count, held_out)


def doctor(storage: Storage = None, as_json: AsJson = False) -> None:
    """What this machine and a running Ray cluster lack."""
    from cpt_launcher.launch import doctor as examination

    items = examination.examine(os.environ, storage)
    if as_json:
        show.as_json([asdict(item) for item in items])
    else:
        show.examination(items)
    if lacking := [item for item in items if item.lacks]:
        kind = StorageError if [item.name for item in lacking] == ["storage"] else NotReadyError
        places = ["this machine" if item.name != "storage" else item.has.partition(",")[0] for item in lacking]
        problems = zip(lacking, places, strict=True)
        raise kind(*(Problem(f"{item.name}: {item.lacks}", place, item.hint) for item, place in problems))


def _output(run: history.Run) -> Path:
    """Where its checkpoints are."""
    output = run.record.get("output")
    return Path(str(output)) if output else run.layout.output


def _newest(items: Sequence[saved.Checkpoint]) -> dict[str, object] | None:
    """The newest complete checkpoint, as the event of its saving."""
    for item in reversed(items):
        if item.complete:
            return {"event": "checkpoint", "step": item.step, "bytes": item.size, "path": str(item.path)}
    return None


def _text(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        hint = "you need to be let in to read it"
        raise NotReadyError(Problem(f"cannot read it: {error.strerror}", str(log), hint)) from None


def _as_json(run: history.Run) -> dict[str, object]:
    step = run.steps[-1] if run.steps else None
    known = {**run.record, "folder": str(run.layout.run_dir), "phase": run.phase or None, "evaluating": run.evaluating}
    return {**known, "last_step": step, "saved": run.saved}


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(epilog="Example: cpt runs --storage /mnt/cluster_storage")(runs)
    app.command(epilog="Example: cpt status configs/gemma3_4b.yaml")(status)
    app.command(epilog="Example: cpt logs configs/gemma3_4b.yaml -f")(logs)
    app.command(epilog="Example: cpt checkpoints configs/gemma3_4b.yaml")(checkpoints)
    app.command(epilog="Example: cpt doctor --storage /mnt/cluster_storage")(doctor)
