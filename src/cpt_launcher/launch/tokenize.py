"""`cpt tokenize`: a corpus's tokens, made once and kept."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from cpt_launcher import child, disk, subtask
from cpt_launcher.config.launcher import RunConfig
from cpt_launcher.errors import DataError, Problem
from cpt_launcher.launch import preflight
from cpt_launcher.launch.attempt import Show
from cpt_launcher.launch.run import register, stage_missing
from cpt_launcher.plan.plan import UNSET, Plan, plan_run
from cpt_launcher.stack import tokens
from cpt_launcher.staging import corpus, dataset


def tokenize(config: RunConfig, environ: Mapping[str, str], show: Show) -> None:
    """Stage what is missing and tokenise it, unless it is there.

    Raises:
        CptError: see `errors`.
    """
    preflight.check_tokenizing(plan_run(config, environ))
    stage_missing(plan_run(config, environ), show)
    plan = plan_run(config, environ)
    if plan.tokens is None:
        what = "the data is not on the storage as the manifest says"
        raise DataError(Problem(what, str(plan.layout.manifest), "cpt stage-data, then again"))
    target = plan.layout.tokenized(plan.tokens)
    if plan.layout.tokenized_marker(plan.tokens).is_file():
        show.step(f"identical {target}")
        return
    register(plan, show)
    if plan.packing:
        show.step(str(plan.packing))
    show.step(f"tokenises {', '.join(config.datasets)} for {config.model}")
    show.step(f"created   {target}: {tokens.describe(_make(plan, plan.tokens, environ))}")


def _make(plan: Plan, name: str, environ: Mapping[str, str]) -> dict[str, object]:
    """Tokenise to a folder that gets its name, and then its marker, when it is whole."""
    layout = plan.layout
    target, part = layout.tokenized(name), layout.tokenized(f".{name}.part")
    recipe = layout.tokenized(f".{name}.yaml")
    kept = subtask.needed(environ, plan.model, plan.secrets, remote=dataset.any_remote(plan.entries.values()))
    env = {key: value for key, value in kept.items() if key not in (*UNSET, "USE_RAY")} | {"DS_ACCELERATOR": "cpu"}
    argv = child.argv("cpt_launcher.stack.tokenizing", str(recipe), str(part))
    disk.require_no_foreign_links(layout.storage, part)
    disk.remove_tree(part)
    disk.write_text(recipe, plan.train_yaml)
    try:
        hint = f"cpt validate {shlex.quote(str(plan.config))} --data --strict"
        made = subtask.run(argv, env, "tokenising", str(layout.storage), hint, secrets=plan.secrets, error=DataError)
    except DataError as error:
        raise DataError(*_wrong_files(plan), *error.problems) from None
    else:
        disk.remove_tree(target)
        disk.rename(part, target)
    finally:
        disk.remove_tree(recipe)
        disk.remove_tree(part)
    disk.write_json(layout.tokenized_marker(name), made)
    return made


def _wrong_files(plan: Plan) -> list[Problem]:
    """Files that are not what their names say. What was staged was looked at; others' data on the storage was not."""
    hint = "ask who put it there, or give the run an entry of your own"
    found = [(path, corpus.wrong_start(path.suffix, _start(path))) for path in (copy.target for copy in plan.present)]
    return [Problem(wrong, str(path), hint, "data-record") for path, wrong in found if wrong]


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError:
        return b""
