"""What the user asks for, as values: a launcher config, or a LLaMA-Factory training YAML as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Cluster = Literal["auto", "anyscale", "ray"]

LAUNCHER_KEYS = (
    "template", "name", "storage", "model", "dataset", "deepspeed", "resources", "secrets", "env", "tracking",
    "keep", "retries", "eval", "train",
)  # fmt: skip
# LLaMA-Factory's arguments that the launcher writes itself, and the key of ours that each comes from.
OWNED = MappingProxyType({
    "model_name_or_path": "model",
    "stage": "template",
    "do_train": "template",
    "finetuning_type": "template",
    "deepspeed": "deepspeed",
    "dataset": "dataset",
    "dataset_dir": "storage",
    "output_dir": "storage",
    "report_to": "tracking",
    "ray_run_name": "name",
    "ray_storage_path": "storage",
    "ray_num_workers": "resources",
    "resources_per_worker": "resources",
    "placement_strategy": "resources",
    "ray_init_kwargs": "env",
})  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """What the run holds: `workers` Ray workers in all, each one GPU, or one CPU where `device` is cpu, spread evenly
    over `nodes`.
    """

    workers: int
    device: Literal["gpu", "cpu"]
    accelerator: str | None = None
    same_node: bool = True
    cluster: Cluster = "auto"
    nodes: int = 1


@dataclass(frozen=True)
class Mlflow:
    """Where MLflow records the run; without an address, the caller's own or a file on the storage."""

    uri: str | None = None
    experiment: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What is held out: `percent` of each dataset's documents, or so many `documents` of each, drawn at random or with
    `tail` the last ones; or datasets of their own.
    """

    percent: int = 0
    documents: int = 0
    tail: bool = False
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunConfig:
    """A launcher config, complete and typed. `train` holds LLaMA-Factory's arguments word for word; `keep` is how many
    complete checkpoints stay (0: all), `retries` how often a failed training is started again.
    """

    path: Path
    name: str
    storage: Path
    model: str
    datasets: tuple[str, ...]
    deepspeed: str | None
    resources: Resources
    template: str = "cpt"
    secrets: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    mlflow: Mlflow | None = None
    keep: int = 0
    retries: int = 0
    evaluation: Evaluation | None = None
    train: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class PlainConfig:
    """A LLaMA-Factory training YAML that is run as it is."""

    path: Path
    text: str
    values: Mapping[str, object]
    name: str
    storage: Path
