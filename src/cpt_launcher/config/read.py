"""The user's file to a config: every value typed, every problem collected."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_launcher import shipped
from cpt_launcher.config import arguments, names, secrets_in_files
from cpt_launcher.config import document as yamlfile
from cpt_launcher.config.document import Document
from cpt_launcher.config.launcher import LAUNCHER_KEYS, OWNED, Evaluation, Mlflow, PlainConfig, Resources, RunConfig
from cpt_launcher.config.values import Values
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.secrets import telling

PLAIN_SIGNS = ("stage", "model_name_or_path")
_EVAL_EXAMPLES = (
    "eval: {share: 0.01} holds one document in a hundred out; or eval: {documents: 1000}, or eval: {dataset: my_test}"
)
_RESOURCES = "resources: {gpus: 4}, or resources: {cpus: 2} for CPU workers"
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read(path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> RunConfig | PlainConfig:
    """Read a config file and apply `key=value` overrides.

    Raises:
        ConfigError: every problem found in the file, at once.
    """
    return parse(yamlfile.read(path), overrides, environ)


def parse(document: Document, overrides: Sequence[str], environ: Mapping[str, str]) -> RunConfig | PlainConfig:
    """The config in a parsed document; see `read`."""
    if not isinstance(document.value, dict):
        hint = "start from a shipped one: `cpt configs copy tiny_cpu.yaml`"
        raise ConfigError(Problem("a config is a mapping of keys to values", str(document.path), hint))
    document = overridden(document, overrides)
    values = document.value
    assert isinstance(values, dict)
    if is_plain(values):
        return _plain(document, values, overrides)
    found = look(document, values, environ)
    if found.problems:
        raise ConfigError(*found.problems)
    return found.config


@dataclass(frozen=True)
class Reading:
    """A launcher config as far as it could be read: defaults stand in for what could not, and a misspelt key's value is
    under the name that was meant, in `document` too. `resources.workers` is 0 where it is not known.
    """

    config: RunConfig
    document: Document
    problems: tuple[Problem, ...]


def look(document: Document, values: dict[str, object], environ: Mapping[str, str]) -> Reading:
    """A launcher config, and all that is wrong with it."""
    reader = _Reader(document, environ)
    config = reader.run_config(values)
    return Reading(config, reader.document, (*reader.problems, *secrets_in_files.check(document)))


def is_plain(values: Mapping[str, object]) -> bool:
    """Whether a mapping is a LLaMA-Factory training YAML rather than a launcher config."""
    return any(key in values for key in PLAIN_SIGNS)


def overridden(document: Document, overrides: Sequence[str]) -> Document:
    """The document with `key=value` overrides in it; what they replace has no place any more.

    Raises:
        ConfigError: those that are not `key=value`, or go through something that is no mapping.
    """
    document, problems = with_overrides(document, overrides)
    if problems:
        raise ConfigError(*problems)
    return document


def with_overrides(document: Document, overrides: Sequence[str]) -> tuple[Document, list[Problem]]:
    """The document with those overrides in it that are possible, and what is wrong with the others."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            document = _overridden(document, override)
        except ConfigError as error:
            problems += error.problems
    return document, problems


def _overridden(document: Document, override: str) -> Document:
    key, equals, text = override.partition("=")
    if not equals or not key:
        what = f"'{_short(override)}' is not key=value"
        raise ConfigError(Problem(what, "command line", "for example train.cutoff_len=2048"))
    if key.count(".") > yamlfile.MAX_DEPTH:
        hint = "a key has one or two parts: train.cutoff_len=2048"
        raise ConfigError(Problem(f"'{_short(key)}' is nested too deeply", "command line", hint))
    parsed = yamlfile.parse(text, Path(f"command line, {key}"))
    parts = tuple(key.split("."))
    value = _replaced(document.value, parts, parsed.value, key)
    return replace(document, value=value, overridden=document.overridden | {parts})


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _replaced(tree: object, parts: tuple[str, ...], new: object, key: str) -> object:
    if not parts:
        return new
    if tree is not None and not isinstance(tree, dict):
        hint = f"'{parts[0]}' has no keys of its own here; train.{parts[-1]}=... is an argument of LLaMA-Factory's"
        raise ConfigError(Problem(f"'{_short(key)}' goes through a value that is not a mapping", "command line", hint))
    return {**(tree or {}), parts[0]: _replaced((tree or {}).get(parts[0]), parts[1:], new, key)}


def _plain(document: Document, values: dict[str, object], overrides: Sequence[str]) -> PlainConfig:
    problems = secrets_in_files.check(document)
    name = values.get("ray_run_name")
    if not isinstance(name, str) or not _RUN_NAME.fullmatch(name):
        where = document.where("ray_run_name")
        problems.append(Problem("ray_run_name is missing or not a plain name", where, "ray_run_name: my_first_run"))
    elif wrong := names.wrong_run(name):
        what = f"ray_run_name {name!r} cannot be a run's folder: {wrong}"
        problems.append(Problem(what, document.where("ray_run_name"), "ray_run_name: my_first_run"))
    storage = values.get("ray_storage_path", "./saves")
    if not isinstance(storage, str) or "://" in storage:
        where = document.where("ray_storage_path")
        problems.append(Problem("ray_storage_path must be a folder", where, "a folder that all workers can reach"))
    if problems:
        raise ConfigError(*problems)
    text = yamlfile.dump(values) if overrides else document.text
    return PlainConfig(document.path, text, values, str(name), shipped.from_user(str(storage)))


def _instead_of(key: str) -> str:
    """What to do about an argument of LLaMA-Factory that the launcher writes."""
    if key == "stage":
        return "leave it out: this launcher does continued pre-training alone (stage: pt)"
    return f"set '{OWNED[key]}' instead"


class _Reader(Values):
    """Takes a config out of a document."""

    def run_config(self, values: dict[str, object]) -> RunConfig:
        values = self._known(self._with_train(values), LAUNCHER_KEYS, ())
        return RunConfig(
            path=self.document.path,
            name=self._name(values),
            storage=self._storage(values),
            model=self._model(values),
            datasets=self._datasets(values),
            deepspeed=self._optional_name(values, "deepspeed"),
            resources=self._resources(values),
            template=self._take(values, "template", str, "cpt"),
            secrets=self._secrets(values),
            env=self._env(values),
            mlflow=self._mlflow(values),
            keep=self._count(values, "keep", "keep: 2 keeps the two newest complete checkpoints; 0 keeps all"),
            retries=self._count(values, "retries", "retries: 3 starts a failed training again, three times at most"),
            evaluation=self._evaluation(values),
            train=self._train(values),
        )

    def _with_train(self, values: dict[str, object]) -> dict[str, object]:
        """The values, LLaMA-Factory's arguments under `train:` though they stand beside it; each is a problem."""
        unknown = [key for key in values if key not in LAUNCHER_KEYS]
        train = values.get("train") or {}
        for key in unknown and [key for key in unknown if key in arguments.load().arguments]:
            hint = (
                f"LLaMA-Factory's own arguments go under train: (train.{key})" if key not in OWNED else _instead_of(key)
            )
            self._add(f"unknown key '{key}'", (key,), hint, "unknown-key")
            values = {name: value for name, value in values.items() if name != key}
            if isinstance(train, dict) and key not in train and key not in OWNED:
                self.document = self.document.moved((key,), ("train", key))
                train = {**train, key: self.document.value["train"][key]}  # type: ignore[index]
        return {**values, "train": train} if train else values

    def _name(self, values: Mapping[str, object]) -> str:
        name = self._required(values, "name", "the run's name, a folder under the storage: name: my_first_run")
        if name and not _RUN_NAME.fullmatch(name):
            self._add(f"name {name!r} cannot be a run's folder", ("name",), "letters, digits, '.', '_' and '-'")
        elif name and (wrong := names.wrong_run(name)):
            self._add(f"name {name!r} cannot be a run's folder: {wrong}", ("name",), "name: my_first_run")
        return name

    def _storage(self, values: Mapping[str, object]) -> Path:
        text = self._expanded(values, "storage", required=True)
        if "://" in text:
            hint = "mount the bucket on every node, and name the folder"
            self._add("the storage must be a folder that every worker can reach, not a URL", ("storage",), hint)
        return shipped.from_user(text)

    def _model(self, values: Mapping[str, object]) -> str:
        """A hub id as it is; a folder as an absolute path, since workers have another working directory."""
        text = self._expanded(values, "model", required=True)
        is_folder = text.startswith((".", "/", "~")) or text.count("/") > 1 or shipped.is_dir(text)
        return str(shipped.from_user(text)) if is_folder else text

    def _datasets(self, values: Mapping[str, object], *at: str) -> tuple[str, ...]:
        raw = values.get("dataset")
        names = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else raw
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            hint = "an entry (or a list of entries) of dataset_info.json: dataset: my_cpt_c4"
            self._add("'dataset' must name one or more registry entries", (*at, "dataset"), hint)
            return ()
        return tuple(names)

    def _optional_name(self, values: Mapping[str, object], key: str) -> str | None:
        name = self._take(values, key, str, "none")
        return None if name == "none" else name

    def _resources(self, values: Mapping[str, object]) -> Resources:
        at = "resources"
        raw: dict[str, object] = self._take(values, at, dict, {})
        is_mapping = raw is values.get(at)
        if values.get(at) is None:
            self._add("'resources' is missing", (at,), _RESOURCES, "missing-key")
        raw = self._known(raw, ("gpus", "cpus", "nodes", "accelerator", "same_node", "cluster"), (at,))
        workers = self._workers(raw) if is_mapping else 0
        cluster = self._take(raw, "cluster", str, "auto", at)
        if cluster not in ("auto", "anyscale", "ray"):
            self._add(f"resources.cluster cannot be {cluster!r}", (at, "cluster"), "auto, anyscale or ray")
        nodes = self._take(raw, "nodes", int, 1, at)
        if nodes < 1 or workers % nodes:
            what = f"{workers} workers cannot be spread evenly over {nodes} nodes"
            self._add(what, (at, "nodes"), "gpus and cpus count all nodes: {nodes: 2, gpus: 8}", "out-of-range")
        if nodes > 1 and raw.get("same_node") is True:
            self._add("same_node: true and several nodes", (at, "same_node"), "leave one of the two out")
        return Resources(
            workers=workers,
            device="gpu" if raw.get("gpus") else "cpu",
            accelerator=self._take(raw, "accelerator", str, "", at) or None,
            same_node=nodes == 1 and self._take(raw, "same_node", bool, True, at),
            nodes=max(nodes, 1),
            cluster="anyscale" if cluster == "anyscale" else "ray" if cluster == "ray" else "auto",
        )

    def _workers(self, raw: Mapping[str, object]) -> int:
        """How many workers there are to be; 0 where that is not known."""
        at, before = "resources", len(self.problems)
        gpus, cpus = self._take(raw, "gpus", int, 0, at), self._take(raw, "cpus", int, 0, at)
        if len(self.problems) > before:
            return 0
        if (gpus > 0) == (cpus > 0) or min(gpus, cpus) < 0:
            what = f"resources needs either gpus or cpus, not gpus: {gpus}, cpus: {cpus}"
            self._add(what if raw else "resources names neither gpus nor cpus", (at,), _RESOURCES)
            return 0
        return gpus or cpus

    def _secrets(self, values: Mapping[str, object]) -> tuple[str, ...]:
        names: list[object] = self._take(values, "secrets", list, [])
        for index, name in enumerate(names):
            if not isinstance(name, str) or not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
                hint = "values come from your environment and never stand in a file"
                self._add("secrets are names of environment variables, in capitals", ("secrets", index), hint)
        return tuple(str(name) for name in names)

    def _env(self, values: Mapping[str, object]) -> dict[str, str]:
        raw: dict[str, object] = self._take(values, "env", dict, {})
        for key, value in raw.items():
            if not isinstance(value, str):
                self._add(
                    f"env.{key} must be text",
                    ("env", key),
                    f'put it in quotes: {key}: "{"..." if telling(key, str(value)) else value}"',
                    "wrong-type",
                )
        return {key: str(value) for key, value in raw.items()}

    def _mlflow(self, values: Mapping[str, object]) -> Mlflow | None:
        tracking = values.get("tracking")
        if tracking in (None, "none"):
            return None
        if tracking == "mlflow":
            return Mlflow()
        if not isinstance(tracking, dict) or set(tracking) != {"mlflow"}:
            hint = "tracking: none, or tracking: {mlflow: {uri: https://..., experiment: my_experiment}}"
            self._add("tracking must be none or mlflow", ("tracking",), hint)
            return None
        raw: dict[str, object] = self._take(tracking, "mlflow", dict, {}, "tracking")
        raw = self._known(raw, ("uri", "experiment"), ("tracking", "mlflow"))
        uri = self._take(raw, "uri", str, "", "tracking", "mlflow")
        experiment = self._take(raw, "experiment", str, "", "tracking", "mlflow")
        return Mlflow(uri or None, experiment or None)

    def _evaluation(self, values: Mapping[str, object]) -> Evaluation | None:
        """A part of each corpus, or datasets of their own."""
        if values.get("eval") in (None, "none"):
            return None
        if not isinstance(given := values["eval"], dict):
            self._add(f"eval must be a mapping, not {given!r}", ("eval",), _EVAL_EXAMPLES, "wrong-type")
            return None
        raw: dict[str, object] = self._take(values, "eval", dict, {})
        raw = self._known(raw, ("share", "documents", "dataset", "tail"), ("eval",))
        tail = self._take(raw, "tail", bool, False, "eval")
        if len(raw.keys() - {"tail"}) != 1:
            self._add("eval needs one of share, documents and dataset", ("eval",), _EVAL_EXAMPLES)
            return None
        if "documents" in raw:
            count = self._take(raw, "documents", int, 1, "eval")
            if count < 1:
                self._add(f"eval.documents cannot be {count}", ("eval", "documents"), "at least one", "out-of-range")
            return Evaluation(documents=count, tail=tail)
        if "dataset" in raw:
            if tail:
                hint = "leave it out: all of the dataset is held out"
                self._add("eval.tail goes with share or documents", ("eval", "tail"), hint)
            return Evaluation(datasets=self._datasets(raw, "eval"))
        share = raw.get("share")
        percent = round(share * 100) if isinstance(share, int | float) and 0 < share <= 0.5 else 0
        if isinstance(share, bool) or not percent or not math.isclose(percent, share * 100):  # type: ignore[operator]
            hint = "whole hundredths up to a half: 0.01; or eval: {documents: 1000}"
            self._add(f"eval.share cannot be {share!r}", ("eval", "share"), hint, "out-of-range")
            return None
        return Evaluation(percent=percent, tail=tail)

    def _train(self, values: Mapping[str, object]) -> dict[str, object]:
        train: dict[str, object] = self._take(values, "train", dict, {})
        for key in train:
            if key in OWNED:
                self._add(
                    f"train.{key} is written by the launcher",
                    ("train", key),
                    _instead_of(key),
                    "owned-key",
                )
        return train
