"""What a person sees: the answer on stdout, all else on stderr. Only this module and `cli` print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from cpt_launcher.corpus import estimated_tokens
from cpt_launcher.dataset import Copy
from cpt_launcher.errors import CptError
from cpt_launcher.plan import Plan
from cpt_launcher.stage import Progress, Staged

if TYPE_CHECKING:
    from rich.progress import TaskID

    from cpt_launcher.findings import Finding
    from cpt_launcher.results import Results


def report(plan: Plan, results: Results | None) -> None:
    """What a finished run came to, and where everything is."""
    lines = [f"Run {plan.layout.run} finished."]
    if results and plan.output:
        saved = ", ".join(path.name for path in results.checkpoints) or "none"
        lines = [
            f"Run {plan.layout.run} finished: {results.steps} steps, "
            f"loss {results.first_loss:.4f} -> {results.last_loss:.4f}",
            f"  model        {plan.output}",
            f"  checkpoints  {saved} (in the same folder)",
            f"  loss plot    {results.plot or 'none (set train.plot_loss: true)'}",
        ]
    typer.echo("\n".join([*lines, f"  log          {plan.layout.train_log}"]))


def staged(item: Staged) -> None:
    """One staged file, and what was counted in it."""
    seen = ""
    if item.documents is not None:
        estimate = f"about {estimated_tokens(item.text_bytes or 0, item.documents):,} tokens"
        tokens = estimate if item.tokens is None else f"{item.tokens:,} tokens"
        seen = f" ({item.documents:,} documents, {tokens})"
    skipped = f"; {item.skipped:,} bad records left out, see .cpt/quarantine" if item.skipped else ""
    note(f"{item.outcome:9} {item.path}{seen}{skipped}")


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """On a terminal, a bar with bytes, rate and time left for the file that is being copied; else nothing."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[Path, TaskID] = {}

        def show(copy: Copy, done: int, total: int | None) -> None:
            if copy.target not in tasks:
                tasks[copy.target] = bar.add_task(copy.target.name, total=total)
            bar.update(tasks[copy.target], completed=done)

        yield show


def counted(files: int, found: list[Finding]) -> str:
    """`3 files, 1 error, 2 warnings`."""
    errors = sum(item.severity == "error" for item in found)
    counts = ((files, "file"), (errors, "error"), (len(found) - errors, "warning"))
    return ", ".join(f"{number} {name}{'' if number == 1 else 's'}" for number, name in counts)


def note(text: str) -> None:
    """A step or a warning of our own."""
    typer.echo(f"cpt: {text}", err=True)


def say(line: str) -> None:
    """A line of the training process."""
    typer.echo(line, err=True)


def fail(error: CptError) -> NoReturn:
    """Every problem of an error with its place and what to do next, and the exit code of the contract."""
    for problem in error.problems:
        typer.echo(f"error: {problem.what}", err=True)
        if problem.where:
            typer.echo(f"  where: {problem.where}", err=True)
        if problem.hint:
            typer.echo(f"  next:  {problem.hint}", err=True)
    sys.exit(error.exit_code)
