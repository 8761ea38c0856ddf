"""The command line: each command reads, plans, acts and reports."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cpt_launcher import __version__, disk, process, shipped
from cpt_launcher.cli import job, models, usage, which
from cpt_launcher.cli import plan as cli_plan
from cpt_launcher.cli import runs as cli_runs
from cpt_launcher.cli import show as terminal
from cpt_launcher.config import read
from cpt_launcher.config.launcher import PlainConfig, RunConfig
from cpt_launcher.errors import ConfigError, CptError, InterruptedRunError, Problem
from cpt_launcher.launch import cluster
from cpt_launcher.plan import plan as plans
from cpt_launcher.staging import stage

if TYPE_CHECKING:
    from cpt_launcher.launch import run as runs

app = typer.Typer(
    name="cpt",
    help="Continued pre-training with LLaMA-Factory, Ray and DeepSpeed: from one YAML to a trained model.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[Path, typer.Argument(help="A launcher config, or a LLaMA-Factory training YAML.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as train.cutoff_len=2048."),
]

Skip = Annotated[
    list[str] | None,
    typer.Option("--skip-preflight", metavar="NAME", help="Skip a preflight check; may be given several times."),
]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"cpt {__version__}")
        raise typer.Exit
    _help_alone(context)


def _help_alone(context: typer.Context) -> None:
    """Without a command, the help; Typer would raise it as an error, which is written otherwise here."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(ConfigError.exit_code)


@app.command(epilog="Example: cpt run configs/gemma3_4b.yaml train.cutoff_len=2048 --dry-run")
def run(
    config: ConfigArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print all that would be done, and do nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new folder; the old one stays.")] = False,
    retries: Annotated[
        int | None, typer.Option(min=0, help="How often to restart after a failure that a restart can mend.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Show LLaMA-Factory's own output.")] = False,
    skip: Skip = None,
    trust: models.TrustOwner = None,
) -> None:
    """Stage what is missing, train, and say where everything is."""
    _check(config, overrides or [])
    loaded = read.read(config, overrides or [])
    if dry_run:
        _preview(loaded, overrides or [], fresh=fresh)
    else:
        _train(
            loaded, overrides or [], raw=raw, fresh=fresh, retries=retries, skip=tuple(skip or ()),
            trust=tuple(trust or ()),
        )  # fmt: skip


@app.command(epilog="Example: cpt resume /mnt/cluster_storage/my_run")
def resume(
    run: cli_runs.Run,
    storage: cli_runs.Storage = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print all that would be done, and do nothing.")] = False,
    retries: Annotated[int | None, typer.Option(min=0, help="Instead of the run's own number of tries.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Show LLaMA-Factory's own output.")] = False,
    skip: Skip = None,
    trust: models.TrustOwner = None,
) -> None:
    """Resume a run as it was recorded, with its config and overrides."""
    from cpt_launcher.launch import resumption
    from cpt_launcher.launch import run as runs

    layout, trusted = which.run(run, storage).layout, tuple(trust or ())
    known = resumption.recorded(layout, trusted)
    runs.choose_run(known.config, fresh=False, name=layout.run, overrides=known.overrides)
    if dry_run:
        _preview(known.config, known.overrides, name=layout.run)
        return
    tries = known.retries if retries is None else retries
    options = runs.Options(False, tries, tuple(skip or ()), trusted, layout.run, known.text, known.overrides)
    _start(known.config, options, raw=raw)


@app.command(epilog="Example: cpt validate configs/ --format github")
def validate(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files and folders; and overrides, KEY=VALUE.")],
    data: Annotated[bool, typer.Option("--data", help="Read the corpora too, every record of them.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Ask LLaMA-Factory's own parser too.")] = False,
    output: Annotated[Literal["text", "github", "json"], typer.Option("--format", help="How to print.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    pedantic: Annotated[bool, typer.Option("--warnings-as-errors", help="Warnings fail too.")] = False,
) -> None:
    """Find every mistake in configs before anything is rented.

    Also in LLaMA-Factory training YAMLs, DeepSpeed JSONs and dataset registries. It needs no GPU and no torch.
    """
    from cpt_launcher.validate import files
    from cpt_launcher.validate import report as findings

    overrides = tuple(path for path in paths if "=" in path and not shipped.exists(path))
    options = files.Options(overrides, data, strict)
    report = files.validate([Path(path) for path in paths if path not in overrides], options)
    if as_json or output == "json":
        typer.echo(findings.as_json(report.findings, report.notes), nl=False)
    else:
        write = findings.as_github if output == "github" else findings.as_text
        terminal.answer(write(report.findings), nl=False)
        for note in report.notes:
            terminal.note(note)
    terminal.note(terminal.counted(report.files, report.findings))
    raise typer.Exit(findings.exit_code(report.findings, warnings_as_errors=pedantic))


cli_plan.register(app)


@app.command("stage-data", epilog="Example: cpt stage-data configs/gemma3_4b.yaml")
def stage_data(
    config: Annotated[Path | None, typer.Argument(help="Stage what this config needs (else every dataset).")] = None,
    overrides: Overrides = None,
    storage: Annotated[Path | None, typer.Option(help="The folder to stage to; replaces the config's.")] = None,
    on_bad: Annotated[
        Literal["fail", "skip"], typer.Option("--on-bad-record", help="skip: to a quarantine file.")
    ] = "fail",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what came from elsewhere.")] = False,
    tokenizer: Annotated[Path | None, typer.Option(help="Count tokens with this model's tokenizer.json.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read what is staged again and compare hashes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Put data and DeepSpeed JSON on the shared storage, checked."""
    target, copies, entries = _staging(config, storage, overrides or [])
    options = stage.Options(force, verify, skip_bad=on_bad == "skip", tokenizer=tokenizer)
    with process.interruptible(), terminal.bar() as progress:
        staged = stage.stage(copies, entries, target, report=terminal.staged, progress=progress, options=options)
    if as_json:
        typer.echo(stage.as_json(staged))


@app.command("fetch-model", epilog="Example: cpt fetch-model configs/gemma3_4b.yaml")
def fetch_model(
    config: Annotated[Path, typer.Argument(help="A launcher config.")], overrides: Overrides = None
) -> None:
    """Download the model to the storage, once for all nodes."""
    from cpt_launcher.staging import hub

    _check(config, overrides or [])
    loaded = read.read(config, overrides or [])
    if isinstance(loaded, PlainConfig):
        raise ConfigError(Problem("a LLaMA-Factory YAML says itself where its model is", str(config), "use a config"))
    with process.interruptible():
        hub.fetch_model(loaded.model, loaded.storage, terminal.note)


@app.command(epilog="Example: cpt tokenize configs/gemma3_4b.yaml")
def tokenize(config: Annotated[Path, typer.Argument(help="A launcher config.")], overrides: Overrides = None) -> None:
    """Tokenise the corpus once, on CPUs, so that no GPU waits."""
    from cpt_launcher.cli import live
    from cpt_launcher.launch import tokenize as pretokenize

    _check(config, overrides or [])
    loaded = read.read(config, overrides or [])
    if isinstance(loaded, PlainConfig):
        raise ConfigError(Problem("a LLaMA-Factory YAML has its own tokenized_path", str(config), "use a config"))
    with process.interruptible(), live.show(raw=False) as show:
        pretokenize.tokenize(loaded, os.environ, show)


cli_runs.register(app)
models.register(app)
job.register(app)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors."""
    from cpt_launcher.config import arguments, editor

    typer.echo(json.dumps(editor.config_schema(arguments.load()), indent=1))


@app.command(epilog="Example: cpt demo --storage /tmp/cpt-demo")
def demo(
    storage: Annotated[Path, typer.Option(help="Where the demo keeps everything.")] = Path("cpt-demo"),
) -> None:
    """The whole path on two CPU workers, with a tiny model."""
    from cpt_launcher.stack import demo as demos

    which.refuse_file(storage)
    model = storage / "models" / "tiny-gemma3"
    config = shipped.shipped(shipped.CONFIGS) / "tiny_cpu.yaml"
    overrides = [f"storage={storage}", f"model={model}"] if storage != Path("cpt-demo") else []
    if not (model / "model.safetensors").is_file():
        terminal.note(f"makes a Gemma 3 of 1.2 M parameters and its tokenizer in {model}")
        demos.make_model(model)
    terminal.note(" ".join(["$ cpt run", str(config), *overrides, "--fresh"]))
    _check(config, overrides)
    loaded = read.read(config, overrides)
    _train(loaded, overrides, fresh=True)


configs_app = typer.Typer(help="The configs and other files that ship with cpt.")
configs_app.callback(invoke_without_command=True)(_help_alone)
app.add_typer(configs_app, name="configs")


@configs_app.command("list")
def configs_list() -> None:
    """Names, a line each."""
    typer.echo("\n".join(f"{folder}/{path.name}" for folder, path in shipped.shipped_files()))


@configs_app.command("show", epilog="Example: cpt configs show tiny_cpu.yaml")
def configs_show(
    name: Annotated[str, typer.Argument(help="A name from the list; its folder may be left out.")],
) -> None:
    """Print one."""
    typer.echo(shipped.shipped_file(name).read_text(encoding="utf-8"), nl=False)


@configs_app.command("copy", epilog="Example: cpt configs copy gemma3_4b.yaml my_run.yaml")
def configs_copy(
    name: Annotated[str, typer.Argument(help="A name from the list; its folder may be left out.")],
    to: Annotated[Path, typer.Argument(metavar="DEST", help="A file or a folder.")] = Path(),
) -> None:
    """Copy one to start from; a file that is there is not overwritten."""
    source = shipped.shipped_file(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise ConfigError(Problem(f"{target} is there already", str(target), "name another file to copy to"))
    disk.write_text(target, shipped.with_schema_path(source))
    terminal.note(f"created   {target}")


def _train(
    config: RunConfig | PlainConfig, overrides: list[str], *, fresh: bool, raw: bool = False,
    retries: int | None = None, skip: tuple[str, ...] = (), trust: tuple[str, ...] = (),
) -> None:  # fmt: skip
    from cpt_launcher.launch import run as runs

    _start(config, runs.Options(fresh, retries, skip, trust, overrides=tuple(overrides)), raw=raw)


def _start(config: RunConfig | PlainConfig, options: runs.Options, *, raw: bool) -> None:
    from cpt_launcher.cli import live
    from cpt_launcher.launch import run as runs

    with process.interruptible(), live.show(raw=raw) as show:
        done = runs.run(config, os.environ, show, options)
    terminal.report(*done)


def _staging(config: Path | None, storage: Path | None, given: list[str]) -> tuple[Path, plans.Copies, plans.Entries]:
    if config is None:
        if storage is None:
            raise ConfigError(Problem("stage to where?", "command line", "name a config, or --storage DIR"))
        registry = shipped.search_path(shipped.DATASETS)[0] / shipped.REGISTRY
        _check(registry, [])
        which.refuse_file(storage)
        target = shipped.from_user(str(storage))
        return (target, *plans.plan_staging_all(registry, target))
    overrides = [*given, f"storage={storage}"] if storage else given
    _check(config, overrides, besides=("model-folder",))  # staging takes no look at the model
    loaded = read.read(config, overrides)
    if isinstance(loaded, PlainConfig):
        hint = "cpt stage-data --storage DIR stages every dataset"
        raise ConfigError(Problem("a LLaMA-Factory YAML names files that are staged already", str(config), hint))
    return (loaded.storage, *plans.plan_staging(loaded))


def _check(path: Path, overrides: list[str], besides: tuple[str, ...] = ()) -> None:
    from cpt_launcher.cli import check

    check.refuse_mistakes(path, overrides, besides)


def _preview(
    loaded: RunConfig | PlainConfig, overrides: Sequence[str] = (), *, fresh: bool = False, name: str | None = None
) -> None:
    from cpt_launcher.launch import run as runs

    plan, resumed = plans.plan_run(loaded, os.environ, name), None
    try:
        name = runs.choose_run(loaded, fresh=fresh, name=name, overrides=overrides)
        plan, resumed = runs.planned(loaded, os.environ, name)
    except CptError as error:
        terminal.note(f"warning: a real run would stop here: {error}")
    terminal.answer(plans.describe(plan, os.environ, cluster.alone(os.environ)), nl=False)
    for line in resumed.lines() if resumed else ():
        terminal.answer(line)
    for name in plan.secrets:
        if not os.environ.get(name):
            terminal.note(f"warning: the secret {name} is not set; a real run would stop here (export {name}=...)")


def _refuse_impossible(argv: list[str]) -> None:
    """An empty argument is a shell variable that is not set, and as a path would be the working directory; one that no
    file system takes is no path and no name.

    Raises:
        ConfigError: there is one.
    """
    for before, text in zip(["", *argv], argv, strict=False):
        name, equals, value = text.partition("=")
        attached = text.startswith("-") and bool(equals)
        own = value if attached else text
        option = name if attached else before if before.startswith("-") else "an argument"
        if not own.strip():
            leave = "" if option in ("--to", "an argument") else ", or leave it out"
            hint = f"is a shell variable not set? Give it a value{leave}"
            raise ConfigError(Problem(f"{option} is empty", "command line", hint))
        is_list = "=" in own or "," in own
        if not is_list and (len(own) > 4000 or any(len(os.fsencode(part)) > 255 for part in own.split("/"))):
            hint = "a part of a path has 255 bytes at most, a path 4,000"
            raise ConfigError(Problem(f"{option} is too long: {own[:40]}...", "command line", hint))


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in a message and the contract's exit code."""
    logging.getLogger("cpt_launcher").addHandler(terminal.NOTES)
    given = sys.argv[1:] if argv is None else argv
    try:
        _refuse_impossible(given)
        code = app(args=given, prog_name="cpt", standalone_mode=False)
    except usage.Wrong as error:
        terminal.fail(ConfigError(usage.problem(error, given)))
    except typer.Abort:
        terminal.fail(InterruptedRunError(Problem("interrupted")))
    except CptError as error:
        terminal.fail(error)
    sys.exit(code if isinstance(code, int) else 0)
