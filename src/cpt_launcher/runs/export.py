"""From a run's checkpoint to a folder that others can use: chosen, exported aside, checked, described, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cpt_launcher import child, disk, jsontext, shipped, subtask
from cpt_launcher.config import document, suggest
from cpt_launcher.errors import ConfigError, NotReadyError, Problem, TrainingError
from cpt_launcher.layout import Layout
from cpt_launcher.plan import footprint
from cpt_launcher.runs import checkpoints, record
from cpt_launcher.runs.checkpoints import Checkpoint
from cpt_launcher.runs.history import Run
from cpt_launcher.stack.exporting import PROBLEM, gathered

RECIPE = (
    "cutoff_len", "template", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps",
    "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_ratio", "bf16", "seed",
)  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CACHED = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/(\w+)/?$")  # huggingface_hub's cache
DTYPES = {"auto": "", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Options:
    """What to export: `checkpoint` is `last`, `best` or a step; `arguments` are LLaMA-Factory's own for its export;
    `trust` names users whose checkpoint may be loaded.
    """

    checkpoint: str = "last"
    dtype: str = "auto"
    check: bool = True
    arguments: Mapping[str, object] = field(default_factory=dict)
    trust: tuple[str, ...] = ()


@dataclass(frozen=True)
class Base:
    """The model that a run began with: its name and, where it is from the hub, its id and revision there."""

    name: str
    hub: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Exported:
    """Where it is, what it was made from, and what the check saw (empty without one)."""

    target: Path
    source: Path
    step: int
    seen: Mapping[str, object]


def choose(run: Run, wanted: str) -> Checkpoint:
    """The checkpoint that is meant; the final model counts as one of the last step.

    Raises:
        ConfigError: there is none, or it is not complete.
    """
    output = Path(str(run.record.get("output") or run.layout.output))
    found = checkpoints.find(output, run.layout.run_dir, marked=run.record.get("checkpoints") == "marked")
    complete = [item for item in found if item.complete]
    have = f"complete ones: {', '.join(str(item.step) for item in complete) or 'none'}; cpt checkpoints shows all"
    if wanted == "last":
        if run.state == "finished" and gathered(output) and (output / "config.json").is_file():
            return Checkpoint(output, run.last, None, 0, "", None, 0, has_optimizer=False)
        if not complete:
            raise ConfigError(Problem(f"the run {run.layout.run} has no complete checkpoint", str(output), have))
        return complete[-1]
    if wanted == "best":
        losses = {int(str(event["step"])): float(str(event["loss"])) for event in run.evals}
        judged = [item for item in complete if item.step in losses]
        if not judged:
            hint = "set eval: in the config, or take last or a step"
            raise ConfigError(Problem("no complete checkpoint was evaluated on held-out data", str(output), hint))
        return min(judged, key=lambda item: losses[item.step])
    named = [item for item in found if str(item.step) == wanted]
    if not named and not wanted.isdecimal():
        hint = suggest.near(wanted, ("last", "best"), f"last, best or a step ({have})")
        raise ConfigError(Problem(f"--checkpoint cannot be '{wanted}'", "command line", hint))
    if not named:
        raise ConfigError(Problem(f"there is no checkpoint of step {wanted}", str(output), have))
    if not named[0].complete:
        raise ConfigError(Problem(f"{named[0].path.name} is not complete: {named[0].missing}", str(output), have))
    return named[0]


def export(
    run: Run, target: Path, options: Options, environ: Mapping[str, str], say: Callable[[str], None]
) -> Exported:
    """Make `target`, whole or not at all.

    Raises:
        ConfigError: nothing to export, or the target is taken.
        StorageError: not enough space, or it cannot be written.
        NotReadyError: not enough memory, or the checkpoint is another user's.
        TrainingError: the stack failed, or the export differs from the checkpoint.
    """
    chosen = choose(run, options.checkpoint)
    for path in (run.layout.train_yaml, chosen.path):
        checkpoints.require_ours(path, options.trust)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(Problem("the target is there and not empty", str(target), "name another folder"))
    train = training(run)
    _require_room(chosen.path, target, options)
    part = target.with_name(f".{target.name}.cpt-part")
    disk.remove_tree(part)
    disk.make_parents(target)
    say(f"exports {chosen.path} (step {chosen.step})")
    request = {
        "source": str(chosen.path),
        "target": str(part),
        "dtype": DTYPES[options.dtype],
        "template": train.get("template") or "empty",
        "check": options.check,
        "arguments": {"trust_remote_code": bool(train.get("trust_remote_code")), **options.arguments},
    }
    try:
        env = {
            **subtask.needed(environ),
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
        }
        argv, hint = child.argv("cpt_launcher.stack.exporting"), "is the checkpoint sound? cpt checkpoints looks"
        seen = subtask.run(
            argv, env, "the export", str(chosen.path), hint, given=json.dumps(request), secrets=run.secrets
        )
        if PROBLEM in seen:
            what, hint = (str(text) for text in list(seen[PROBLEM]))  # type: ignore[call-overload]
            raise TrainingError(Problem(what, str(chosen.path), f"{hint} {target} (and in the base model's folder)"))
        disk.write_text(part / "README.md", card(run, chosen, seen))
        disk.sync_tree(part)
        disk.rename(part, target)
    except BaseException:
        with contextlib.suppress(Exception):
            disk.remove_tree(part)
        raise
    return Exported(target, chosen.path, chosen.step, seen)


def _require_room(source: Path, target: Path, options: Options) -> None:
    """Space beside the target, and memory, for the whole weights (in 32 bits where they are put together first)."""
    parameters = footprint.count_parameters(source)
    whole = parameters is not None
    if parameters is None:
        shards = sum(path.stat().st_size for path in source.glob("global_step*/*_optim_states.pt"))
        parameters = shards // 12  # a master copy and two moments in 32 bits
    each = 4 if options.dtype == "fp32" or not whole else 2
    folder = next(path for path in target.absolute().parents if path.is_dir())
    disk.require_space(folder, parameters * (each + (0 if whole else 4)))
    need = parameters * (4 if whole else 12)
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        have = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    if need > have:
        what = f"the export needs about {need / 1e9:,.1f} GB of memory, and {have / 1e9:,.1f} GB are free"
        raise NotReadyError(Problem(what, "this machine", "export on a larger one that sees the storage"))


def training(run: Run) -> dict[str, object]:
    """What a run was trained with, by its train.yaml; empty where that cannot be read."""
    try:
        value = yaml.safe_load(run.layout.train_yaml.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        value = {}
    return value if isinstance(value, dict) else {}


def base(model: str, storage: Path) -> Base:
    """What a run's `model_name_or_path` is for others: a hub's id, or a folder's name without the way to it."""
    if not model.startswith("/"):
        return Base(model, model) if _HUB_ID.fullmatch(model) and not shipped.is_dir(model) else Base(Path(model).name)
    layout, folder = Layout(storage, ""), Path(model)
    marker = jsontext.mapping(layout.model_marker(folder.name))
    name, revision = str(marker.get("model")), marker.get("revision")
    if _HUB_ID.fullmatch(name) and layout.model(name) == folder:  # as cpt fetch-model left it
        return Base(name, name, str(revision) if revision else None)
    if cached := _CACHED.search(model):
        name = f"{cached[1]}/{cached[2]}"
        return Base(name, name, cached[3])
    return Base(folder.name)


def _front_matter(found: Base) -> str:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    values: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    of = {"base_model": found.hub} if found.hub else {}
    return document.dump({**values, **of, "tags": ["continued-pretraining"]})


def card(run: Run, chosen: Checkpoint, seen: Mapping[str, object]) -> str:
    """A model card: what the model was made from, with what, and how it did."""
    import jinja2

    train = training(run)
    found = base(str(train.get("model_name_or_path") or "unknown"), run.layout.storage)
    template = shipped.template("model_card", ".md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True, keep_trailing_newline=True
    )
    in_force = run.record.get("in_force")
    train = {**training(run), **(in_force if isinstance(in_force, dict) else {})}
    logged = next((event for event in reversed(run.steps) if int(str(event["step"])) <= chosen.step), None)
    epochs = logged.get("epoch") if logged else None
    if logged and isinstance(epochs, int | float) and logged["step"]:
        epochs = epochs * chosen.step / int(str(logged["step"]))
    return environment.from_string(template).render(
        run=run,
        trained=record.trained(run.record, chosen.step, epochs),
        record={"tokens": None, "gpus": (), "versions": {}, "data": {}, "workers": 1, "device": "", **run.record},
        train={"cutoff_len": None, "deepspeed": None, **train},
        base=found,
        front_matter=_front_matter(found),
        losses={event["step"]: event["loss"] for event in run.evals},
        chosen=chosen,
        logged=logged,
        seen=seen,
        recipe=RECIPE,
    )
