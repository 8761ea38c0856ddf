"""The command line. The only module that prints; each command reads, plans, acts and reports."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cpt_launcher import __version__, assets, reader
from cpt_launcher import plan as plans
from cpt_launcher import run as runs
from cpt_launcher import stage as staging
from cpt_launcher.config import PlainConfig
from cpt_launcher.errors import ConfigError, CptError, Problem
from cpt_launcher.plan import Plan
from cpt_launcher.results import Results

app = typer.Typer(
    name="cpt",
    help="Continued pre-training with LLaMA-Factory, Ray and DeepSpeed: from one YAML to a trained model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[Path, typer.Argument(help="A launcher config, or a LLaMA-Factory training YAML.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.cutoff_len=2048."),
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"cpt {__version__}")
        raise typer.Exit


@app.command(epilog="Example: cpt run configs/gemma3_4b.yaml train.cutoff_len=2048 --dry-run")
def run(
    config: ConfigArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print all that would be done, and do nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new folder; the old one stays.")] = False,
) -> None:
    """Stage what is missing, render the training YAML, train, and say where everything is."""
    loaded = reader.read(config, overrides or ())
    if dry_run:
        _preview(plans.plan_run(loaded, os.environ))
        return
    _report(*runs.run(loaded, os.environ, runs.Show(_note, _say), fresh=fresh))


@app.command("stage-data", epilog="Example: cpt stage-data configs/gemma3_4b.yaml")
def stage_data(
    config: Annotated[Path | None, typer.Argument(help="Stage what this config needs (else every dataset).")] = None,
    storage: Annotated[Path | None, typer.Option(help="The folder to stage to; replaces the config's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Put data, dataset registry and DeepSpeed JSON on the shared storage."""
    target, copies, entries = _staging(config, storage)
    staged = staging.stage(copies, entries, target, report=lambda item: _note(f"{item.outcome:9} {item.path}"))
    if as_json:
        typer.echo(staging.as_json(staged))


@app.command(epilog="Example: cpt demo --storage /tmp/cpt-demo")
def demo(
    storage: Annotated[Path, typer.Option(help="Where the demo keeps everything.")] = Path("cpt-demo"),
) -> None:
    """The whole path on two CPU workers: a tiny model, a small real corpus, a loss that falls."""
    from cpt_launcher import demo as demos

    model = storage / "models" / "tiny-gemma3"
    config = assets.shipped(assets.CONFIGS) / "tiny_cpu.yaml"
    overrides = [f"storage={storage}", f"model={model}"] if storage != Path("cpt-demo") else []
    if not (model / "model.safetensors").is_file():
        _note(f"makes a Gemma 3 of 1.2 M parameters and its tokenizer in {model}")
        demos.make_model(model)
    _note(" ".join(["$ cpt run", str(config), *overrides, "--fresh"]))
    loaded = reader.read(config, overrides)
    _report(*runs.run(loaded, os.environ, runs.Show(_note, _say), fresh=True))


def _staging(config: Path | None, storage: Path | None) -> tuple[Path, plans.Copies, plans.Entries]:
    if config is None:
        if storage is None:
            raise ConfigError(Problem("stage to where?", "command line", "name a config, or --storage DIR"))
        return (storage.absolute(), *plans.plan_staging_all(storage.absolute()))
    loaded = reader.read(config, [f"storage={storage}"] if storage else [])
    if isinstance(loaded, PlainConfig):
        hint = "cpt stage-data --storage DIR stages every dataset"
        raise ConfigError(Problem("a LLaMA-Factory YAML names files that are staged already", str(config), hint))
    return (loaded.storage, *plans.plan_staging(loaded))


def _preview(plan: Plan) -> None:
    typer.echo(plans.describe(plan, os.environ), nl=False)
    for name in plan.secrets:
        if not os.environ.get(name):
            _note(f"warning: the secret {name} is not set; a real run would stop here (export {name}=...)")


def _report(plan: Plan, results: Results | None) -> None:
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


def _note(text: str) -> None:
    typer.echo(f"cpt: {text}", err=True)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _fail(error: CptError) -> NoReturn:
    for problem in error.problems:
        typer.echo(f"error: {problem.what}", err=True)
        if problem.where:
            typer.echo(f"  where: {problem.where}", err=True)
        if problem.hint:
            typer.echo(f"  next:  {problem.hint}", err=True)
    sys.exit(error.exit_code)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in a message and the contract's exit code."""
    try:
        app(args=argv)
    except CptError as error:
        _fail(error)
