"""The commands that turn a run into something to use and to look at: export, eval, ui."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from cpt_launcher import process, shipped
from cpt_launcher.cli import show, which
from cpt_launcher.config import arguments, document
from cpt_launcher.config.suggest import near
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.launch import mlflow_page

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, its config, or its name on the storage.")]
Storage = Annotated[Path | None, typer.Option(help="The storage that a run's name is looked for on.")]
Checkpoint = Annotated[str, typer.Option(help="last, best (by held-out loss), or a step.")]
TrustOwner = Annotated[
    list[str] | None,
    typer.Option("--trust-owner", metavar="USER", envvar="CPT_TRUST_OWNER", help="Load a checkpoint that is USER's."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def export(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="LLaMA-Factory's own export arguments: export_size=2."),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The folder to make; absent or empty.")] = None,
    checkpoint: Checkpoint = "last",
    dtype: Annotated[Literal["auto", "bf16", "fp16", "fp32"], typer.Option(help="auto: the checkpoint's.")] = "auto",
    check: Annotated[bool, typer.Option("--check/--no-check", help="Load it back, compare and generate.")] = True,
    trust: TrustOwner = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Make a folder that transformers and vLLM load.

    From a run's final model, or from any complete checkpoint.
    """
    from cpt_launcher.runs import export as exports

    if to is None:
        raise ConfigError(Problem("export to where?", "command line", "--to DIR"))
    found = which.run(run, storage)
    options = exports.Options(checkpoint, dtype, check, _arguments(overrides or []), tuple(trust or ()))
    with process.interruptible("nothing was exported"):
        made = exports.export(found, shipped.from_user(str(to)), options, os.environ, show.note)
    if as_json:
        show.as_json({**asdict(made), "target": str(made.target), "source": str(made.source)})
    else:
        show.exported(made)


def evaluate(
    run: Run,
    dataset: Annotated[
        str | None, typer.Option(help="Entries of the storage's registry, instead of what was held out.")
    ] = None,
    checkpoint: Checkpoint = "last",
    trust: TrustOwner = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Did it help? Both models on the same tokens.

    Loss and perplexity of the base model and of the trained one, and how much of the data it was trained on.
    """
    from cpt_launcher.runs import evaluate as evaluation

    found = which.run(run, storage)
    with process.interruptible(""):
        result = evaluation.evaluate(found, dataset, checkpoint, os.environ, show.note, trust or ())
    if as_json:
        show.as_json(asdict(result))
    else:
        show.evaluated(result)


def ui(
    storage: Storage = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of MLflow's page.")] = 5000,
) -> None:
    """MLflow's page on the runs of a storage, until Ctrl-C."""
    place = which.place(storage)
    database = place / "mlflow.db"
    if not database.is_file():
        hint = "runs with `tracking: {mlflow: {}}` make one; with an address, its server has the page"
        raise ConfigError(Problem("there is no MLflow database on the storage", str(database), hint))
    with process.interruptible(""):
        show.note(f"starts MLflow's server on {database}")
        mlflow_page.serve(database, place / "mlartifacts", port, show.note)


def _arguments(overrides: list[str]) -> dict[str, object]:
    """LLaMA-Factory's own arguments of its export.

    Raises:
        ConfigError: not `key=value`, or a key that is none of them.
    """
    known = [name for name in arguments.load().arguments if name.startswith(("export_", "quantization_"))]
    known.remove("export_dir")
    found: dict[str, object] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            hint = "for example export_size=2, export_quantization_bit=4, export_quantization_dataset=FILE"
            hint = near(key, known, hint) if key not in known else hint
            raise ConfigError(Problem(f"'{text}' is no argument of LLaMA-Factory's export", "command line", hint))
        found[key] = document.parse(value, Path(f"command line, {key}")).value
    return found


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(epilog="Example: cpt export cpt-demo/tiny_cpu --to my-model")(export)
    app.command("eval", epilog="Example: cpt eval cpt-demo/tiny_cpu")(evaluate)
    app.command(epilog="Example: cpt ui --storage cpt-demo")(ui)
