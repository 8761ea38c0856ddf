"""What a person sees: the answer on stdout, all else on stderr. Only this module and `cli` print."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, NoReturn

import typer

from cpt_launcher import escapes, jsontext
from cpt_launcher.errors import CptError, InterruptedRunError
from cpt_launcher.plan.plan import Plan
from cpt_launcher.runs import events, overlap, plots
from cpt_launcher.runs.history import UNREADABLE
from cpt_launcher.runs.record import resume_command
from cpt_launcher.stack import tokens as token_count
from cpt_launcher.staging.dataset import Copy
from cpt_launcher.staging.records import estimated_tokens
from cpt_launcher.staging.stage import Progress, Staged, StagedFolder
from cpt_launcher.wording import counted as nouns

if TYPE_CHECKING:
    from rich.progress import TaskID

    from cpt_launcher.disk import Outcome
    from cpt_launcher.launch.doctor import Item
    from cpt_launcher.runs.checkpoints import Checkpoint
    from cpt_launcher.runs.evaluate import Evaluation
    from cpt_launcher.runs.export import Exported
    from cpt_launcher.runs.history import Run
    from cpt_launcher.runs.results import Results
    from cpt_launcher.validate.report import Finding


MANY = 6  # checkpoints that are named one by one
TOO_SMALL = 20_000_000  # parameters; below it a model does not write sentences, however long it is trained


def report(plan: Plan, results: Results | None) -> None:
    """What a finished run came to, and where everything is."""
    lines = [f"Run {plan.layout.run} finished."]
    if results and plan.output:
        names = [path.name for path in results.checkpoints]
        names = names if len(names) <= MANY else [names[0], f"... ({len(names) - 2} more)", names[-1]]
        saved = ", ".join(names) or "none"
        lines = [
            f"Run {plan.layout.run} finished: {results.steps} steps, "
            f"loss {results.first_loss:.4f} -> {results.last_loss:.4f}",
            *_held_out(results),
            *([f"  tokens       {token_count.describe(results.tokens)}"] if results.tokens else []),
            *([f"  trained on   {token_count.describe_trained(results.trained_on)}"] if results.trained_on else []),
            f"  model        {plan.output}",
            f"  checkpoints  {saved} (in the same folder)",
            f"  loss plot    {_plot(plan, results) or 'none (set train.plot_loss: true)'}",
        ]
    lines.append(f"  log          {plan.layout.train_log}")
    answer("\n".join([*lines, *(_next(plan) if results and plan.output else [])]))


def _plot(plan: Plan, results: Results) -> Path | None:
    """The launcher's own, which has the whole run; else LLaMA-Factory's."""
    return plan.layout.loss_plot if plan.layout.loss_plot.is_file() else results.plot


def _next(plan: Plan) -> list[str]:
    """What to do with a finished run."""
    run = quote(str(plan.layout.run_dir))
    commands = [f"cpt export {run} --to {quote(f'{plan.layout.run}-model')}"]
    if plan.train.get("eval_dataset") or plan.train.get("val_size"):
        commands.insert(0, f"cpt eval {run}")
    return [f"  {'' if at else 'next':12} {command}" for at, command in enumerate(commands)]


def _held_out(results: Results) -> list[str]:
    if results.base is None or results.trained is None:
        return []
    return [_losses(("base model", results.base), ("trained", results.trained))]


def _losses(*named: tuple[str, object]) -> str:
    return f"  held out     {'; '.join(f'{name}: {events.held_out(loss)}' for name, loss in named)}"


def exported(made: Exported) -> None:
    """Where an export is, and what its check saw."""
    lines = [f"Exported step {made.step} to {made.target}"]
    if made.seen:
        compared = f"{made.seen['compared']} tensors are the checkpoint's"
        lines.append(f"  checked      loads; {compared}; {made.seen['parameters']:,} parameters, {made.seen['dtype']}")
        lines.append(f"  sample       {made.seen['generated']!r}{_sample_note(int(str(made.seen['parameters'])))}")
    answer("\n".join([*lines, f"  model card   {made.target}/README.md"]))


def _sample_note(parameters: int) -> str:
    """That the sample is no verdict, where the model is too small to write."""
    return f" (a model of {parameters / 1e6:.1f} million parameters cannot write)" if parameters < TOO_SMALL else ""


def evaluated(result: Evaluation) -> None:
    """Both models on the same tokens."""
    rows = (("base model", result.base_loss), (f"step {result.step}", result.loss))
    lines = [f"  {name:12} {events.held_out(loss)}" for name, loss in rows]
    verdict = "The training helped" if result.helped else "The training did not help"
    names = result.data.removeprefix("eval_dataset: ")
    on = overlap.words(result.tokens, names, result.trained_share)
    answer("\n".join([f"{verdict}, on {on}:", *lines]))


def runs(found: Sequence[Run]) -> None:
    """A table of runs."""
    rows = [("RUN", "STATE", "STEP", "LOSS", "STARTED", "HOST")]
    for run in found:
        last = run.steps[-1] if run.steps else {}
        step = f"{last['step']}/{last.get('total') or '?'}" if last else "-"
        loss = f"{last['loss']:.4f}" if last else "-"
        started = run.record.get("started") or (run.record.get("cause") if run.state == UNREADABLE else None)
        rows.append((run.layout.run, run.state, step, loss, str(started or "-"), str(run.record.get("host") or "-")))
    table(rows)


def status(run: Run, saved: Sequence[Checkpoint]) -> None:
    """What a run is doing, or how it ended; `saved`: the checkpoints that are there, oldest first."""
    record, now = run.record, time.time()
    state = {"lost": "lost: its launcher is gone"}.get(run.state, run.state)
    lines = [f"Run {run.layout.run}: {', '.join((state, *_phase(run, now)))}", *_training(run, now)]
    lines += _saved(run, saved)
    if record.get("cause"):
        lines.append(f"  cause        {record['cause']}")
    lines += _starts(record)
    if record.get("ended"):
        lines.append(f"  ended        {record['ended']}, exit code {record.get('exit_code')}")
    if isinstance(counted := record.get("tokens"), dict):
        lines.append(f"  tokens       {token_count.describe(counted)}")
    if isinstance(trained := record.get("trained_on"), dict):
        lines.append(f"  trained on   {token_count.describe_trained(trained)}")
    lines += _evaluations(run)
    lines.append(f"  folder       {run.layout.run_dir}")
    if run.state in ("failed", "interrupted", "lost"):
        lines.append(f"  to resume    {resume_command(run.layout)}")
    answer("\n".join(map(escapes.flat, lines)))
    if sys.stdout.isatty():
        answer(plots.text(run, min(shutil.get_terminal_size().columns, 100)))


def _phase(run: Run, now: float) -> list[str]:
    """What a running one is doing, as far as its last words go."""
    if run.state != "running" or not run.phase:
        return []
    event = run.evaluating or {"event": "phase", "phase": run.phase}
    return [events.describe({**event, "seconds_left": events.left_at(event, now)})]


def _training(run: Run, now: float) -> list[str]:
    """Step, loss, rate and time left."""
    last = run.steps[-1] if run.steps else None
    if last is None:
        return []
    lines = [f"  step         {last['step']}/{last.get('total') or '?'}"]
    lines.append(f"  loss         {run.steps[0]['loss']:.4f} -> {last['loss']:.4f}")
    rate = last.get("tokens_per_second")
    if isinstance(rate, int | float):
        each = f"{rate / int(str(run.record.get('workers') or 1)):,.0f} per worker"
        lines.append(f"  tokens/s     {rate:,.0f} ({each})")
    left = events.left_at(last, now)
    if run.state == "running" and left is not None:
        lines.append(f"  left         {events.duration(left)}")
    return lines


def _starts(record: Mapping[str, object]) -> list[str]:
    """The first start and, where there was more than one, the others with what ended the training before each."""
    first, known = record.get("first_started") or record.get("started"), record.get("restarts")
    lines = [f"  started      {first} on {record.get('host')} by {record.get('user')}"]
    restarts = [item for item in known if isinstance(item, dict)] if isinstance(known, list) else []
    if not restarts:
        return lines
    lines.append(f"  restarts     {len(restarts)}, the last {restarts[-1].get('time') or record.get('started')}")
    if len(restarts) > MANY:
        lines.append(f"    ({len(restarts) - MANY} earlier ones)")
    for item in restarts[-MANY:]:
        at = f" (at step {item['step']})" if "step" in item else ""
        at = f" (resumed from step {item['resumed_from']})" if item.get("resumed_from") else at
        lines.append(f"    {item.get('cause')}{at}")
    return lines


def _evaluations(run: Run) -> list[str]:
    """Of the base model, and the last one, in the words of the run's end."""
    if not run.evals:
        return []
    first, last = run.evals[0], run.evals[-1]
    end = run.last if run.state == "finished" else None
    names = ["base model" if first["step"] == 0 else f"step {first['step']}"]
    names += ["trained" if last["step"] == end else f"step {last['step']}"] if last is not first else []
    return [_losses(*((name, event["loss"]) for name, event in zip(names, (first, last), strict=False)))]


def _saved(run: Run, saved: Sequence[Checkpoint]) -> list[str]:
    """The newest complete checkpoint, and what newer ones lack, but while the run may be writing them."""
    newest = next((item for item in reversed(saved) if item.complete), None)
    lines = [f"  checkpoint   step {newest.step} ({events.size(newest.size)})"] if newest else []
    for item in saved if run.state != "running" else ():
        if newest is None or item.step > newest.step:
            lines.append(f"  incomplete   step {item.step}: {item.missing}")
    if run.saved and not lines:
        lines = [f"  checkpoint   step {run.saved['step']} is gone"]
    return lines


def checkpoints(items: Sequence[Checkpoint], workers: int, held_out: Mapping[int, float]) -> None:
    """A table of checkpoints; `held_out` has the held-out losses that are known, by step."""
    rows = [("STEP", "TRAIN LOSS", "HELD OUT", "SIZE", "COMPLETE", "RESUMABLE", "PATH")]
    for item in items:
        loss = "-" if item.loss is None else f"{item.loss:.4f}"
        reason = item.resumable(workers)
        by = f"with {nouns(item.workers, 'worker')}" if item.workers else "yes"
        by += f", ZeRO-{item.stage}" if item.stage else ""
        complete = "yes" if item.complete else f"no: {item.missing}"
        resumable = "no" if reason == item.missing and reason else f"no: {reason}" if reason else by
        judged = f"{held_out[item.step]:.4f}" if item.step in held_out else "-"
        rows.append((str(item.step), loss, judged, events.size(item.size), complete, resumable, str(item.path)))
    table(rows)


def examination(items: Sequence[Item]) -> None:
    """What a machine has and lacks."""
    for item in items:
        answer(f"{'LACKS' if item.lacks else 'ok':6} {item.name:12} {item.has}")


def table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as what is in them, the last one as it is."""
    rows = [[escapes.flat(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row[:-1], widths, strict=True)]
        answer("  ".join([*cells, row[-1]]))


def staged(item: Staged | StagedFolder) -> None:
    """One staged file, or a folder of them, and what was counted in it."""
    outcome, seen = item.outcome if isinstance(item, Staged) else _in_sum(item.outcomes), []
    if isinstance(item, StagedFolder):
        seen = [nouns(sum(item.outcomes.values()), "file")]
        if len(item.outcomes) > 1:
            each = (f"{number:,} {outcome}" for outcome, number in sorted(item.outcomes.items()))
            seen = [f"{seen[0]}: {', '.join(each)}"]
    if item.documents is not None:
        estimate = f"about {nouns(estimated_tokens(item.text_bytes or 0, item.documents), 'token')}"
        tokens = estimate if item.tokens is None else nouns(item.tokens, "token")
        seen = [*seen, nouns(item.documents, "document"), tokens]
    counts = f" ({', '.join(seen)})" if seen else ""
    skipped = f"; {nouns(item.skipped, 'bad record')} left out, see .cpt/quarantine" if item.skipped else ""
    empty = f"; {item.empty:,} without text" if item.empty else ""
    note(f"{outcome:9} {item.path}{counts}{skipped}{empty}")


def _in_sum(outcomes: Mapping[Outcome, int]) -> str:
    """One word for what became of many files."""
    return next(iter(outcomes)) if len(outcomes) == 1 else "staged"


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """On a terminal, a bar with bytes, rate and time left for the file that is being copied; else nothing."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[Path, TaskID] = {}

        def show(copy: Copy, done: int, total: int | None) -> None:
            if copy.target not in tasks:
                for earlier in tasks.values():  # a folder of many files would fill the terminal
                    bar.remove_task(earlier)
                tasks.clear()
                tasks[copy.target] = bar.add_task(escape(escapes.flat(copy.target.name)), total=total)
            bar.update(tasks[copy.target], completed=done)

        yield show


def counted(files: int, found: list[Finding]) -> str:
    """`3 files, 1 error, 2 warnings`."""
    errors = sum(item.severity == "error" for item in found)
    counts = ((files, "file"), (errors, "error"), (len(found) - errors, "warning"))
    return ", ".join(nouns(number, name) for number, name in counts)


def answer(text: str, *, nl: bool = True) -> None:
    """What was asked for, on stdout; control characters in it do nothing."""
    typer.echo(escapes.shown(text), nl=nl)


def as_json(value: object) -> None:
    """What was asked for, as one JSON document."""
    typer.echo(jsontext.dumps(value))


def note(text: str) -> None:
    """A step or a warning of our own, in one line."""
    typer.echo(f"cpt: {escapes.flat(text)}", err=True)


def say(line: str) -> None:
    """A line of the training process."""
    typer.echo(escapes.flat(line, colours=True), err=True)


class Notes(logging.Handler):
    """Says what modules that do not print have to say."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


NOTES = Notes()


def fail(error: CptError) -> NoReturn:
    """Every problem of an error with its place and what to do next, and the exit code of the contract. A stop that was
    asked for is no error.
    """
    sign = "cpt" if isinstance(error, InterruptedRunError) else "error"
    for problem in error.problems:
        typer.echo(f"{sign}: {escapes.flat(problem.what)}", err=True)
        if problem.where:
            typer.echo(f"  where: {escapes.flat(problem.where)}", err=True)
        if problem.hint:
            typer.echo(f"  next:  {escapes.flat(problem.hint)}", err=True)
    sys.exit(error.exit_code)
