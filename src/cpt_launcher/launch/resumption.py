"""What a run resumes from, how its config differs from the one that was recorded, and which of the two holds."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from cpt_launcher.config import arguments as schema
from cpt_launcher.config import document as yamlfile
from cpt_launcher.config import read
from cpt_launcher.config.launcher import PlainConfig, RunConfig
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import Plan
from cpt_launcher.runs import checkpoints, record
from cpt_launcher.runs.checkpoints import Checkpoint
from cpt_launcher.stack.worker import MARKER

Effect = Literal["kept", "data", "schedule", "seen", "new"]
# What transformers 4.52.4 and DeepSpeed 0.16.9 take from a checkpoint, whatever the arguments say. The scheduler's
# state holds its base rates, but not its shape nor its length (torch, LambdaLR.state_dict). The optimizer's holds the
# settings of its groups (torch, Optimizer.load_state_dict; deepspeed/runtime/zero/stage3.py, `_rigid_load_state_dict`).
# trainer_state.json holds the batch size (Trainer.train) and the intervals (DefaultFlowCallback.on_step_end).
KEPT = (
    "model_name_or_path", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "per_device_train_batch_size", "logging_steps", "save_steps", "eval_steps",
)  # fmt: skip
# What changes the batches: those that were trained on are skipped by their number, not by what was in them.
DATA = (
    "dataset", "cutoff_len", "template", "max_samples", "val_size", "packing", "neat_packing", "streaming", "seed",
    "data_seed", "gradient_accumulation_steps", "preprocessing_num_workers", "preprocessing_batch_size",
    "interleave_probs", "mix_strategy", "buffer_size", "disable_shuffling",
)  # fmt: skip
# What the rest of the learning-rate schedule is computed from.
SCHEDULE = ("max_steps", "num_train_epochs", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps")
# Where things lie, which may move with the storage; and the corpus as `cpt tokenize` made it, the same tokens.
PLACES = ("output_dir", "dataset_dir", "ray_run_name", "ray_storage_path", "tokenized_path")


@dataclass(frozen=True)
class Change:
    """An argument that is not what it was. `effect`: the checkpoint's stays in force; or the new one holds, and changes
    the order of the data, or the learning-rate schedule, or holds out what was trained on; or it just holds.
    """

    name: str
    before: object
    now: object
    effect: Effect

    def __str__(self) -> str:
        holds = {
            "kept": f"the checkpoint's {self.before} stays in force; --fresh starts over with yours",
            "data": "in force from here; other batches come, so some text may be seen twice or not at all",
            "schedule": "in force from here, and the learning rate follows the new schedule",
            "seen": (
                "in force from here; some of what is held out now may have been trained on, so its loss is not one of"
                " unseen text, and not comparable with those before; --fresh starts over"
            ),
            "new": "in force from here",
        }
        return f"{self.name} {self.before} -> {self.now}: {holds[self.effect]}"


@dataclass(frozen=True)
class Resumption:
    """The checkpoint, and what has changed since the run that wrote it."""

    checkpoint: Checkpoint
    changes: tuple[Change, ...] = ()

    @property
    def in_force(self) -> Mapping[str, object]:
        """The checkpoint's own values of arguments that say something else."""
        return {change.name: change.before for change in self.changes if change.effect == "kept"}

    def facts(self) -> dict[str, object]:
        """For run.json."""
        return {"checkpoint": str(self.checkpoint.path), "changes": [str(change) for change in self.changes]}

    def lines(self) -> list[str]:
        """What to tell about it."""
        differs = [f"differs from the recorded run: {change}" for change in self.changes]
        return [f"resumes from {self.checkpoint.path}, step {self.checkpoint.step}", *differs]


@dataclass(frozen=True)
class Recorded:
    """A run's config as run.json has it."""

    config: RunConfig | PlainConfig
    text: str
    overrides: tuple[str, ...]
    retries: int


def find(run: Plan) -> Resumption | None:
    """What a run would resume from; None where it would start at step 0. To be asked before train.yaml is replaced.

    Raises:
        ConfigError: the newest complete checkpoint is for another number of workers.
    """
    if run.output is None or not run.output.is_dir():
        return None
    newest, _ = checkpoints.choose(run.output, run.workers, marked=strict(run))
    return Resumption(newest, tuple(compare(recorded_arguments(run.layout), run.train))) if newest else None


def strict(run: Plan) -> bool:
    """Whether a checkpoint without a marker is not complete, because those of this run get one."""
    known = record.read(run.layout) or {}
    marked = run.output is not None and any(run.output.glob(f"checkpoint-*/{MARKER}"))
    return known.get("checkpoints") == "marked" or marked


def recorded_arguments(layout: Layout) -> Mapping[str, object]:
    """The arguments of the run so far: those of its rendered YAML, but what a checkpoint kept in force; empty where
    nothing is known.
    """
    try:
        found = yaml.safe_load(layout.train_yaml.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    kept = (record.read(layout) or {}).get("in_force")
    return {**(found if isinstance(found, dict) else {}), **(kept if isinstance(kept, dict) else {})}


def compare(before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[Change]:
    """Every argument that differs; one that is not given has LLaMA-Factory's default."""
    names = dict.fromkeys((*before, *now)) if before else {}
    for name in names:
        old, new = _value(before, name), _value(now, name)
        if name in PLACES or _same(name, old, new):
            continue
        effect = "seen" if name == "eval_dataset" and _is_seen(before, now) else _effect(name, old)
        yield Change(name, old, new, effect)


def _effect(name: str, old: object) -> Effect:
    if name in KEPT and old is not None:
        return "kept"
    return "data" if name in DATA else "schedule" if name in SCHEDULE else "new"


def _is_seen(before: Mapping[str, object], now: Mapping[str, object]) -> bool:
    """Whether what is held out now is another part of a dataset that was trained on (`NAME@...`), or all of it."""
    trained = {name.partition("@")[0] for name in _names(before, "dataset")}
    other = _names(now, "eval_dataset") - _names(before, "eval_dataset")
    return any(name.partition("@")[0] in trained for name in other)


def _names(arguments: Mapping[str, object], key: str) -> set[str]:
    """The datasets of an argument, which LLaMA-Factory takes as a list or with commas."""
    value = arguments.get(key) or []
    return {str(name).strip() for name in (value if isinstance(value, list) else str(value).split(","))}


def _value(arguments: Mapping[str, object], name: str) -> object:
    known = schema.load().arguments.get(name)
    return arguments.get(name, known.default if known else None)


def _same(name: str, old: object, new: object) -> bool:
    """A DeepSpeed file on another storage is the same, and so is a hub's model that was fetched meanwhile."""
    if name == "deepspeed" and isinstance(old, str) and isinstance(new, str):
        return Path(old).name == Path(new).name
    if name == "model_name_or_path" and isinstance(old, str) and isinstance(new, str):
        return old == new or new.endswith(f"/models/{old.replace('/', '--')}")
    return old == new


def kept_in_force(config: RunConfig | PlainConfig, found: Resumption) -> RunConfig | PlainConfig:
    """The config with what the checkpoint keeps in force, so that the rendered YAML says what is true; a LLaMA-Factory
    YAML stays as it is.
    """
    if isinstance(config, PlainConfig) or not found.in_force:
        return config
    kept = {name: value for name, value in found.in_force.items() if name != "model_name_or_path"}
    return replace(config, train={**config.train, **kept})


def recorded(layout: Layout, trusted: Collection[str] = (), environ: Mapping[str, str] = os.environ) -> Recorded:
    """The config that a run was last started with, whatever has become of the file since. Relative paths in it are
    those of the directory that the run was started in.

    Raises:
        ConfigError: run.json does not hold it.
        NotReadyError: it is of somebody else, who is not `trusted`: a config decides what is run.
    """
    checkpoints.require_ours(layout.run_json.parent, trusted)
    known = record.read(layout) or {}
    text, overrides, retries = (known.get(name) for name in ("config_text", "overrides", "retries"))
    if not isinstance(text, str) or not isinstance(overrides, list):
        what = f"the run {layout.run} was recorded without its config and overrides"
        raise ConfigError(Problem(what, str(layout.run_json), "start it again with `cpt run` and its config"))
    if (folder := Path(str(known.get("directory")))).is_dir():
        os.chdir(folder)
    given = tuple(str(override) for override in overrides)
    document = yamlfile.parse(text, Path(str(known.get("config"))))
    plain = isinstance(document.value, dict) and read.is_plain(document.value)
    storage = () if plain else (f"storage={json.dumps(str(layout.storage))}",)
    config = read.parse(document, (*given, *storage), environ)
    return Recorded(config, text, given, retries if isinstance(retries, int) else 0)
