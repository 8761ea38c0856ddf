"""The command that makes a job of a run."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from cpt_launcher import process, shipped
from cpt_launcher.cli import check, show
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.launch import bundle, job_anyscale, job_ray


def job(
    config: Annotated[Path, typer.Argument(help="A launcher config.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides.")] = None,
    target: Annotated[Literal["anyscale", "ray"], typer.Option(help="Where the job is to run.")] = "anyscale",
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for the job's files: a new one, or an earlier job's, which is replaced."),
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Anyscale: submit it with the anyscale CLI.")] = False,
    image: Annotated[str | None, typer.Option(help="Anyscale: an image, instead of a Containerfile.")] = None,
    compute: Annotated[str | None, typer.Option(help="Anyscale: the name of a compute config.")] = None,
    max_retries: Annotated[int, typer.Option(min=0, help="Anyscale: how often a failed job starts again.")] = 3,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, max=10_000, help="Anyscale: hours after which the job is ended.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray: the dashboard, http://HOST:8265.")] = None,
    do: Annotated[
        Literal["submit", "start", "logs", "status", "stop"],
        typer.Option(help="Ray: submit follows the job to its end, start does not; the others need --id."),
    ] = "submit",
    number: Annotated[str | None, typer.Option("--id", help="Ray: a job's id.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the job would be; do nothing.")] = False,
) -> None:
    """The same run as an Anyscale job or a Ray job.

    Started again, it resumes from its newest complete checkpoint.
    """
    check.refuse_mistakes(config, overrides or [])
    if target == "anyscale":
        options = job_anyscale.Options(image, compute, max_retries, timeout)
        _anyscale(bundle.make(config, overrides or []), out, options, submit=submit, dry_run=dry_run)
    elif dry_run:
        _show(bundle.make(config, overrides or []), out)
    else:
        if address is None:
            raise ConfigError(Problem("which cluster?", "command line", "--address http://HOST:8265"))
        _ray(config, overrides or [], out, address, do, number)


def _anyscale(
    made: bundle.Bundle, out: Path | None, options: job_anyscale.Options, *, submit: bool, dry_run: bool
) -> None:
    job_anyscale.require_storage(made.config.storage)
    folder = shipped.from_user(str(out or Path("jobs") / made.config.name))
    files = job_anyscale.files(made, folder, options)
    if dry_run:
        _show(files, folder)
        return
    bundle.write(files, folder)
    show.note(f"created   {folder}: job.yaml, {'' if options.image else 'Containerfile, '}files/")
    if loose := () if options.image else job_anyscale.packages(made).loose:
        show.note(f"not pinned in the Containerfile: {', '.join(loose)}")
    if made.config.secrets:
        show.note(f"the job takes {', '.join(made.config.secrets)} from the variables of its workspace or cloud")
    if submit:
        job_anyscale.submit(folder, shutil.which("anyscale"), show.say)
    else:
        typer.echo(shlex.join(job_anyscale.command(folder)))


def _show(made: bundle.Bundle, folder: Path | None) -> None:
    """What would be written."""
    if folder is not None:
        bundle.require_own(folder)
    show.answer(bundle.describe(made, folder), nl=False)


def _ray(config: Path, overrides: list[str], out: Path | None, address: str, do: str, number: str | None) -> None:
    connected = job_ray.client(address)
    if do in ("submit", "start"):
        made = bundle.make(config, overrides)
        with tempfile.TemporaryDirectory(prefix="cpt-job-") as place:
            folder = shipped.from_user(str(out or Path(place, "files")))
            bundle.write(made, folder)
            number = job_ray.submit(connected, folder, made.config.name)
        show.note(f"submitted {number}")
    if number is None:
        raise ConfigError(Problem(f"--do {do} of which job?", "command line", "--id ID, as submit has said"))
    if do in ("submit", "logs"):
        with process.interruptible(f"the job keeps running; end it with --do stop --id {number}"):
            job_ray.follow(connected, number, typer.echo)
    elif do == "status":
        typer.echo(job_ray.describe(job_ray.status(connected, number)))
    elif do == "stop":
        show.note("asked it to end" if job_ray.stop(connected, number) else "it had ended already")
    else:
        typer.echo(number)


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(epilog="Example: cpt job configs/gemma3_4b.yaml storage=/mnt/user_storage --out jobs/gemma")(job)
