"""Everything a run will do, as a value: what `--dry-run` prints and `run` carries out. Writes nothing."""

from __future__ import annotations

import functools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import yaml

from cpt_launcher import child, shipped, urls
from cpt_launcher.config import arguments, document, mlflow_address, secrets_in_files
from cpt_launcher.config.launcher import PlainConfig, RunConfig
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.plan import derive, heldout, tokenized
from cpt_launcher.plan.render import render
from cpt_launcher.secrets import telling
from cpt_launcher.staging import collisions, dataset, manifest, places
from cpt_launcher.staging.dataset import Copy

ANYSCALE = ("ANYSCALE_CLUSTER_ID", "ANYSCALE_SESSION_ID", "ANYSCALE_JOB_ID")  # set on its nodes
# An inherited one of these makes LLaMA-Factory or Ray take another road than the one planned here:
# torchrun, other trainers, arguments unchecked (llamafactory/cli.py, hparams/parser.py), Ray Train V2.
UNSET = ("FORCE_TORCHRUN", "USE_MCA", "USE_V1", "ALLOW_EXTRA_ARGS", "RAY_TRAIN_V2_ENABLED")

_SMALL = 1 << 20  # bytes; a DeepSpeed file has a few kilobytes

Copies = tuple[Copy, ...]
Entries = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Plan:
    """One run: files to stage, data that is on the storage (`present`), registry entries to merge, the YAML, and the
    process to start.

    `block` is cutoff_len, in tokens; `tokens_per_step` counts all workers, 0 where blocks are not packed. `tokens`
    names the tokenised corpus that belongs to the run, made or not; None until the data is staged. `splits`: what is
    held out of its datasets; `entries` has those that are drawn. `folder` is where the process starts, None for the
    launcher's own working directory: Ray has its workers import from there.
    """

    config: Path
    layout: Layout
    train_yaml: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    model: str
    workers: int
    device: str
    output: Path | None
    secrets: tuple[str, ...] = ()
    copies: Copies = ()
    present: Copies = ()
    entries: Entries = field(default_factory=dict)
    tokens: str | None = None
    block: int = 0
    tokens_per_step: int = 0
    tracked: bool = False
    keep: int = 0
    retries: int = 0
    packing: derive.Packing | None = None
    splits: tuple[heldout.Split, ...] = ()
    folder: Path | None = None

    @property
    def tokenized(self) -> bool:
        """Whether it trains on what `cpt tokenize` made."""
        return self.tokens is not None and self.train.get("tokenized_path") == str(self.layout.tokenized(self.tokens))

    @functools.cached_property
    def train(self) -> Mapping[str, object]:
        """The arguments in the rendered YAML."""
        found = yaml.safe_load(self.train_yaml)
        return found if isinstance(found, dict) else {}


def plan_run(config: RunConfig | PlainConfig, environ: Mapping[str, str], run: str | None = None) -> Plan:
    """The plan of a run; `run` replaces the config's name (a fresh start).

    Raises:
        ConfigError: an unknown dataset, DeepSpeed file or template.
        DataError: the data of an entry is not there.
    """
    if isinstance(config, PlainConfig):
        return _plain(config)
    layout = Layout(config.storage, run or config.name)
    held_out = config.evaluation.datasets if config.evaluation else ()
    names = dict.fromkeys((*config.datasets, *held_out))
    entries = dataset.find(tuple(names), shipped.search_path(shipped.DATASETS, config.path), config.storage)
    deepspeed = deepspeed_file(config)
    staged_deepspeed = config.storage / deepspeed.name if deepspeed else None
    if layout.fetched(config.model):
        config = replace(config, model=str(layout.model(config.model)))
    env_vars = {**config.env, **_mlflow_env(config, environ)}
    data = [copy for entry in entries for copy in dataset.copies(entry, config.storage)]
    present = tuple(copy for copy in data if copy.there)
    copies = tuple(copy for copy in data if not copy.there)
    if deepspeed and staged_deepspeed:
        copies = (*copies, Copy(str(deepspeed), staged_deepspeed))
    collisions.refuse(copies, layout.registry)
    places.refuse(copies, layout)
    places.refuse_run(layout, manifest.read(layout))
    packing = _packing(config, layout, [entry for entry in entries if entry.name in config.datasets])
    chosen = packing.arguments if packing else {}
    staged = {entry.name: entry.staged(config.storage) for entry in entries}
    theirs = {entry.name for entry in entries if entry.on_storage}
    splits: list[heldout.Split] = []
    if config.evaluation:
        splits = _splits(config, layout, entries, staged)
        staged |= {name: dict(fields) for one in splits if one.drawn for name, fields in one.entries.items()}
        held_out = held_out or tuple(one.names[1] for one in splits)
        trained = {one.name: one.names[0] for one in splits}
        config = replace(config, datasets=tuple(trained.get(name, name) for name in config.datasets))
    config = replace(
        config, train={**chosen, **derive.evaluation(held_out, config.train, config.resources.device), **config.train}
    )
    tokens = tokenized.key(layout, data, staged, config.model, config.train)
    if tokens and layout.tokenized_marker(tokens).is_file() and "tokenized_path" not in config.train:
        config = replace(config, train={**config.train, "tokenized_path": str(layout.tokenized(tokens))})
    return Plan(
        config=config.path,
        layout=layout,
        train_yaml=render(config, layout, staged_deepspeed, env_vars, anyscale=_is_anyscale(config, environ)),
        argv=_argv(layout, config.resources.device),
        env={**_base_env(config.resources.device), **env_vars},
        model=config.model,
        workers=config.resources.workers,
        device=config.resources.device,
        output=layout.output,
        secrets=_secrets(config, environ),
        copies=copies,
        present=present,
        entries={name: fields for name, fields in staged.items() if name not in theirs},
        tokens=tokens,
        block=number(config.train, "cutoff_len"),
        tokens_per_step=tokens_per_step(config.train, config.resources.workers),
        tracked=config.mlflow is not None,
        keep=config.keep,
        retries=config.retries,
        packing=packing,
        splits=tuple(splits),
        folder=child.FOLDER,
    )


def _splits(
    config: RunConfig, layout: Layout, entries: Sequence[dataset.Entry], staged: Entries
) -> list[heldout.Split]:
    """Each training dataset as two, unless others are held out."""
    wanted = config.evaluation
    assert wanted is not None
    if wanted.datasets:
        _refuse_trained_on(config, wanted.datasets, staged)
        return []
    known = {} if wanted.tail else manifest.read(layout)
    seed = config.train.get("seed")
    seed = seed if isinstance(seed, int) else heldout.SEED
    splits = {}
    for entry in (entry for entry in entries if entry.name in config.datasets):
        one = heldout.split(entry.name, staged[entry.name], replace(wanted, tail=True), None, seed)
        if one is not None and not wanted.tail:
            there = heldout.count(entry, dataset.copies(entry, config.storage), layout, known)
            one = heldout.split(entry.name, staged[entry.name], wanted, there, seed)
        splits[entry.name] = one
    if whole := [name for name, one in splits.items() if one is None]:
        hint = "hold another dataset out: eval: {dataset: my_test}"
        what = f"nothing can be held out of {', '.join(whole)}: it is read from a bucket, or sliced already"
        raise ConfigError(Problem(what, str(config.path), hint, "evaluation"))
    return [one for one in splits.values() if one is not None]


def _refuse_trained_on(config: RunConfig, held_out: Sequence[str], staged: Entries) -> None:
    """A dataset that is trained on would be called held out."""
    trained = [staged[name] for name in config.datasets]
    if both := [name for name in held_out if staged[name] in trained]:
        what = f"eval.dataset: {', '.join(both)} is trained on, and says nothing about what the model has not seen"
        hint = "hold a part of it out, eval: {share: 0.01}, or name another dataset"
        raise ConfigError(Problem(what, str(config.path), hint, "evaluation"))


def _packing(config: RunConfig, layout: Layout, entries: Sequence[dataset.Entry]) -> derive.Packing | None:
    """From what the manifest counted; None until all of the training data is staged."""
    known = manifest.read(layout)
    documents = text_bytes = 0
    for entry in entries:
        copies = dataset.copies(entry, config.storage)
        prefix = (entry.cloud or entry.staged_name).rstrip("/")
        found = [record for name, record in known.items() if name == prefix or name.startswith(f"{prefix}/")]
        if not copies or not found or any(record.documents is None for record in found):
            return None
        own = sum(record.documents or 0 for record in found)
        most = config.train.get("max_samples")
        used = min(own, most) if isinstance(most, int) and most > 0 else own
        documents += used
        text_bytes += sum(record.text_bytes or 0 for record in found) * used // max(own, 1)
    return derive.packing(config.train, documents, text_bytes)


def plan_staging(config: RunConfig) -> tuple[Copies, Entries]:
    """What `stage-data CONFIG` puts on the storage: copies, and entries for its registry."""
    plan = plan_run(config, {})
    return plan.copies, plan.entries


def plan_staging_all(registry: Path, storage: Path) -> tuple[Copies, Entries]:
    """What `stage-data --storage DIR` puts there: every dataset of a registry, and every DeepSpeed file of the
    working directory, or the shipped ones where it has none.

    Raises:
        ConfigError: the registry or a DeepSpeed file cannot be read, or a secret stands in one.
    """
    entries = dataset.read_registry(registry)
    jsons = sorted(shipped.search_path(shipped.DEEPSPEED)[0].glob("*.json"))
    if leaks := [problem for path in jsons for problem in secrets_in_files.check(document.read(path))]:
        raise ConfigError(*leaks)
    data = [copy for entry in entries.values() for copy in dataset.copies(entry, storage)]
    copies = (*data, *(Copy(str(path.absolute()), storage / path.name) for path in jsons))
    collisions.refuse(copies, storage / shipped.REGISTRY)
    places.refuse(copies, Layout(storage, ""))
    return copies, {name: entry.staged(storage) for name, entry in entries.items()}


def _plain(config: PlainConfig) -> Plan:
    layout = Layout(config.storage, config.name)
    resources = config.values.get("resources_per_worker", {"GPU": 1})
    device = "gpu" if not isinstance(resources, dict) or "GPU" in resources else "cpu"
    workers, output = config.values.get("ray_num_workers", 1), config.values.get("output_dir")
    return Plan(
        config=config.path,
        layout=layout,
        train_yaml=config.text,
        argv=_argv(layout, device),
        env=_base_env(device),
        model=str(config.values.get("model_name_or_path", "")),
        workers=workers if isinstance(workers, int) else 1,
        device=device,
        output=Path(output) if isinstance(output, str) and output.startswith("/") else None,
        tokens_per_step=tokens_per_step(config.values, workers if isinstance(workers, int) else 1),
    )


def number(train: Mapping[str, object], name: str) -> int:
    """A whole number among the arguments, or LLaMA-Factory's default; 0 where it is neither."""
    given = train.get(name, arguments.load().arguments[name].default)
    return given if isinstance(given, int) else 0


def tokens_per_step(train: Mapping[str, object], workers: int) -> int:
    """Of all workers. Blocks are full where they are packed, LLaMA-Factory's default for `stage: pt`
    (hparams/parser.py); 0 where they are not.
    """
    if train.get("packing") is False:
        return 0
    sizes = ("cutoff_len", "per_device_train_batch_size", "gradient_accumulation_steps")
    return workers * math.prod(number(train, name) for name in sizes)


def _argv(layout: Layout, device: str) -> tuple[str, ...]:
    if device == "gpu":
        return ("llamafactory-cli", "train", str(layout.train_yaml))
    return child.argv("cpt_launcher.stack.cpu_workers", "train", str(layout.train_yaml))


def _base_env(device: str) -> dict[str, str]:
    env = {"USE_RAY": "1", "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return env if device == "gpu" else {**env, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def _mlflow_env(config: RunConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """MLflow's settings. An address in the caller's environment is left there: on a cluster its workers have it only
    by `secrets:`, as it may hold a password.
    """
    if config.mlflow is None:
        return {}
    uri = config.mlflow.uri
    if uri is None and not environ.get("MLFLOW_TRACKING_URI"):
        uri = f"sqlite:///{config.storage}/mlflow.db"
    named = {"MLFLOW_TRACKING_URI": uri} if uri else {}
    return {**named, "MLFLOW_EXPERIMENT_NAME": config.mlflow.experiment or config.name}


def _secrets(config: RunConfig, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Those that the config names; with MLflow's address goes what was taken out of it."""
    known = mlflow_address.apart(environ, config.mlflow.uri if config.mlflow else None)
    account = (name for name in mlflow_address.ACCOUNT if known.get(name) and mlflow_address.URI in config.secrets)
    return tuple(dict.fromkeys((*config.secrets, *account)))


def _is_anyscale(config: RunConfig, environ: Mapping[str, str]) -> bool:
    """Whether to ask in Anyscale's words: said in the config, else seen from its environment variables."""
    if config.resources.cluster != "auto":
        return config.resources.cluster == "anyscale"
    return any(environ.get(name) for name in ANYSCALE)


def deepspeed_file(config: RunConfig) -> Path | None:
    """The DeepSpeed JSON that a config names, from the first folder that has it.

    Raises:
        ConfigError: there is none of that name, or it is not JSON.
    """
    if config.deepspeed is None:
        return None
    name = config.deepspeed
    folders = shipped.search_path(shipped.DEEPSPEED, config.path)
    candidates = [shipped.from_user(name), *(folder / name for folder in folders)]
    found = next((path for path in candidates if shipped.is_file(path)), None)
    if found is None:
        have = sorted({path.name for folder in folders for path in folder.glob("*.json") if _is_deepspeed(path)})
        what = f"there is no DeepSpeed file '{name}'"
        raise ConfigError(Problem(what, str(config.path), f"there are {', '.join(have)}; or none", "unknown-deepspeed"))
    try:
        json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(Problem(f"not a readable JSON file: {error}", str(found), rule="ds-json")) from None
    return found.absolute()


def _is_deepspeed(path: Path) -> bool:
    """Whether a file beside a config is one; data may lie there, too."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < _SMALL else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and arguments.is_deepspeed(value)


def describe(plan: Plan, environ: Mapping[str, str], alone: Mapping[str, str] = MappingProxyType({})) -> str:
    """The plan as text for a person; secrets by name only. `alone`: what it gets for starting Ray itself."""
    secrets = {name: "(set, not shown)" if environ.get(name) else "(NOT SET)" for name in plan.secrets}
    env = {**{key: _masked(key, value) for key, value in {**alone, **plan.env}.items()}, **secrets}
    unset = [name for name in UNSET if name in environ]
    copies = [f"  {copy.shown}\n    -> {copy.place}" for copy in plan.copies]
    merged = [f"  {name} -> {plan.layout.registry}" for name in plan.entries]
    workers = f"{plan.workers} {plan.device.upper()} worker{'' if plan.workers == 1 else 's'}"
    parts = [
        f"Run {plan.layout.run} from {plan.config}: {workers}",
        "\n".join(["", "Files to storage:", *copies]) if copies else "",
        "\n".join(["", "On the storage already:", *(f"  {copy.target}" for copy in plan.present)])
        if plan.present
        else "",
        "\n".join(["", "Registry entries:", *merged]) if merged else "",
        "\n".join(["", "Held out:", *(f"  {one}" for one in plan.splits)]) if plan.splits else "",
        f"\nRendered as {plan.layout.train_yaml}:\n\n{plan.train_yaml.rstrip()}",
        "\n".join(["", "Environment:", *(f"  {key}={value}" for key, value in env.items())]),
        *(f"  (removed) {name}" for name in unset),
        f"\nCommand:\n  {shlex.join(plan.argv)}",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _masked(key: str, value: str) -> str:
    if telling(key, value):
        return "(not shown)"
    return urls.shown(value) if any(urls.secrets(value)) else value
