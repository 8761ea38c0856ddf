"""`cpt validate`: every mistake in files and folders, without the training stack."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cpt_launcher import shipped
from cpt_launcher.config import arguments, read, secrets_in_files
from cpt_launcher.config import document as yamlfile
from cpt_launcher.config.document import Document
from cpt_launcher.config.launcher import LAUNCHER_KEYS, OWNED, RunConfig
from cpt_launcher.config.suggest import meant
from cpt_launcher.errors import ConfigError, CptError, DataError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.plan import plan
from cpt_launcher.staging import dataset
from cpt_launcher.validate import check_arguments, datasets, end_of_text, strict, trust, walk
from cpt_launcher.validate import deepspeed as check_deepspeed
from cpt_launcher.validate import paths as check_paths
from cpt_launcher.validate.arguments import Arguments
from cpt_launcher.validate.report import Finding, of, ordered

_PLACEHOLDER = re.compile(r"<[A-Za-z][\w -]*>")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to look at: `data` reads the corpora too, `strict` asks LLaMA-Factory."""

    overrides: tuple[str, ...] = ()
    data: bool = False
    strict: bool = False
    environ: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(os.environ))


@dataclasses.dataclass(frozen=True)
class Report:
    """All that was found in `files` files, and remarks such as token counts."""

    files: int
    findings: list[Finding]
    notes: list[str]


def validate(paths: Sequence[Path], options: Options) -> Report:
    """Check files, and what is recognised in folders."""
    checker, skipped = _Checker(options), Counter[str]()
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            before = checker.files, len(checker.found)
            for inner in walk.files(path, checker.add_unlisted, skipped):
                checker.check(inner, named=False)
            if (checker.files, len(checker.found)) == before:
                hint = "name a folder with configs, DeepSpeed JSONs or a dataset registry"
                checker.add(Problem("nothing in this folder is known to cpt", f"{path}:1:1", hint, "unknown-file"))
        else:
            checker.check(path, named=True)
    notes = [*checker.notes, *([remark] if (remark := walk.remark(skipped)) else [])]
    return Report(checker.files, ordered(checker.found), list(dict.fromkeys(notes)))


def refuse(found: Sequence[Finding]) -> None:
    """Stop a run at the errors among findings.

    Raises:
        ConfigError: at least one is about configuration.
        DataError: all are about data.
    """
    errors = [item for item in found if item.severity == "error"]
    places = [item.path if item.rule == "file-unreadable" else item.place for item in errors]  # a file has no line then
    problems = [Problem(item.message, place, item.hint, item.rule) for item, place in zip(errors, places, strict=True)]
    if problems:
        raise (DataError if all(item.is_data for item in errors) else ConfigError)(*problems)


class _Checker:
    """Collects findings over files."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.files = 0
        self.found: list[Finding] = []
        self.notes: list[str] = []

    def add(self, *problems: Problem) -> None:
        self.found += [of(problem) for problem in problems]

    def add_unlisted(self, error: OSError) -> None:
        """A folder that cannot be listed."""
        what = f"cannot read it: {error.strerror}"
        self.add(Problem(what, str(error.filename), "may you list it?", "file-unreadable"))

    def check(self, path: Path, *, named: bool) -> None:
        """One file; `named` by the user, so that one which is nothing of ours is a mistake."""
        before = len(self.found)
        try:
            document = yamlfile.read(path)
            if isinstance(document.value, dict) and read.is_plain(document.value):
                document = yamlfile.read(path, yaml11=True)
        except CptError as error:
            if named or walk.may_be_ours(path):
                self.files += 1
                self.add(*error.problems)
            return
        if isinstance(document.value, dict):
            document, problems = read.with_overrides(document, self.options.overrides)
            self.add(*problems)
        values = document.value if isinstance(document.value, dict) else {}
        if not self._recognised(document, path, values, named=named):
            if named:
                self.add(Problem("this is nothing that cpt knows", f"{path}:1:1", "a config has name:", "unknown-file"))
            return
        self.files += 1
        self.add(*secrets_in_files.check(document))
        self.found += _placeholders(document)
        self.found[before:] = trust.spoken(self.found[before:], document)

    def _recognised(self, document: Document, path: Path, values: dict[str, object], *, named: bool) -> bool:
        ours = named or walk.is_ours(values)
        if arguments.is_deepspeed(values) and ours:
            self.found += check_deepspeed.check(document)
        elif read.is_plain(values) and ours:
            self._plain(document, values)
        elif set(values) & set(LAUNCHER_KEYS) and ours:
            self._launcher(document, values)
        elif datasets.is_registry(path, values):
            self._registry(document, path)
        else:
            return False
        return True

    def _registry(self, document: Document, path: Path) -> None:
        try:
            entries = dataset.read_registry(path)
        except CptError as error:
            self.add(*error.problems)
            return
        for entry in entries.values():
            self.found += datasets.check_entry(document, entry, used=False)
            self._bytes(entry, None)

    def _bytes(self, entry: dataset.Entry, args: Arguments | None) -> datasets.Amount | None:
        if not self.options.data:
            return None
        found, notes, amount = datasets.check_bytes(entry, args)
        self.found += found
        self.notes += notes
        return amount

    def _plain(self, document: Document, values: dict[str, object]) -> None:
        on_ray = any(key.startswith("ray_") or key == "resources_per_worker" for key in values)
        if on_ray:
            try:
                read.parse(_spelt(document, values), (), self.options.environ)
            except CptError as error:
                self.add(*error.problems)
        wanted = values.get("resources_per_worker", {"GPU": 1})
        gpus = not isinstance(wanted, dict) or "GPU" in wanted
        args = _arguments(values, {}, lambda name: document.where(name), on_ray=on_ray, gpus=gpus)
        self.found += check_arguments.check(args)
        try:
            self.found += datasets.lines_of_yaml(values)
        except CptError as error:
            self.add(*error.problems)
        name, on = values.get("model_name_or_path"), values.get("ray_storage_path")
        self.found += trust.model(args, name)
        self.found += end_of_text.check(args, Path(str(name)))
        self._model(name, name, shipped.from_user(str(on or "./saves")), document.where("model_name_or_path"))
        at = ("ray_init_kwargs", "runtime_env", "env_vars")
        self.found += trust.environment(args.env_vars(), lambda key: document.where(*at, key))
        if self.options.strict:
            self.found += strict.check(values, args.where)
        deepspeed = values.get("deepspeed")
        if isinstance(deepspeed, str) and deepspeed.startswith("/") and shipped.is_file(deepspeed):
            self._deepspeed(Path(deepspeed), args)

    def _launcher(self, document: Document, values: dict[str, object]) -> None:
        before = len(self.found)
        reading = read.look(document, values, self.options.environ)
        document, config = reading.document, reading.config
        values = document.value if isinstance(document.value, dict) else {}
        self.add(*reading.problems)
        args = _of_launcher(document, config)
        self.found += check_arguments.check(args)
        self.found += trust.model(args, config.model)
        self._model(config.model, values.get("model"), config.storage, document.where("model"))
        fetched = Layout(config.storage, config.name).model(config.model)
        self.found += end_of_text.check(args, Path(config.model) if config.model.startswith("/") else fetched)
        self.notes += [remark for remark in [check_paths.storage(config.storage)] if remark]
        self.found += trust.environment(config.env, lambda key: document.where("env", key))
        self._around(document, config, args)
        if not any(item.severity == "error" for item in self.found[before:]):
            self._planned(document, config, args)

    def _model(self, name: object, written: object, storage: Path, where: str) -> None:
        if isinstance(name, str) and name.startswith("/"):
            self.found += check_paths.model(Path(name), written, storage, where)

    def _planned(self, document: Document, config: RunConfig, args: Arguments) -> None:
        """What shows only when everything is put together."""
        try:
            planned = plan.plan_run(config, {})
        except (ConfigError, DataError) as error:
            self.add(*(_placed(problem, document, "dataset") for problem in error.problems))
            return
        if self.options.strict:
            rendered = yamlfile.parse(planned.train_yaml, config.path).value
            self.found += strict.check(rendered if isinstance(rendered, dict) else {}, args.where)

    def _around(self, document: Document, config: RunConfig, args: Arguments) -> None:
        """What a config points at: its datasets, its DeepSpeed file, its template."""
        try:
            folders = shipped.search_path(shipped.DATASETS, config.path)
            amounts = {}
            for entry in dataset.find(config.datasets, folders, config.storage):
                registry = yamlfile.read(entry.registry)
                self.found += datasets.check_entry(registry, entry, used=True, run=config.name)
                self.found += trust.dataset(args, entry)
                self.add(*secrets_in_files.check(registry, entry.name))
                amounts[entry.name] = self._bytes(entry, args)
            self.found += datasets.check_amount(amounts, args)
        except CptError as error:
            self.add(*(_placed(problem, document, "dataset") for problem in error.problems))
        try:
            deepspeed = plan.deepspeed_file(config)
            if deepspeed:
                self._deepspeed(deepspeed, args)
        except CptError as error:
            self.add(*(_placed(problem, document, "deepspeed") for problem in error.problems))
        if not shipped.is_file(shipped.template(config.template)):
            what = f"there is no template '{config.template}'"
            self.add(Problem(what, document.where("template"), "template: cpt", "launcher-template"))

    def _deepspeed(self, path: Path, args: Arguments) -> None:
        found = yamlfile.read(path)
        self.found += check_deepspeed.check(found)
        self.found += check_deepspeed.check_together(found, args)
        self.add(*secrets_in_files.check(found))


def _spelt(document: Document, values: dict[str, object]) -> Document:
    """A training YAML with misspelt arguments under the names that were meant."""
    for name, right in meant(values, arguments.load().arguments).items():
        document = document.moved((name,), (right,))
    return document


def _of_launcher(document: Document, config: RunConfig) -> Arguments:
    """A launcher config's arguments: those under `train:`, and those that its other keys stand for."""
    derived: dict[str, object] = {"stage": "pt", "do_train": True, "finetuning_type": "full", "report_to": "none"}
    if config.resources.workers:
        derived["ray_num_workers"] = config.resources.workers
    train = {key: value for key, value in config.train.items() if key not in OWNED}

    def where(name: str) -> str:
        return document.where("train", name) if name not in OWNED else document.where(OWNED[name])

    gpus = config.resources.device == "gpu" if config.resources.workers else None
    return _arguments(train, derived, where, on_ray=True, gpus=gpus)


def _arguments(
    given: Mapping[str, object], derived: Mapping[str, object], where: Callable[[str], str], *, on_ray: bool,
    gpus: bool | None,
) -> Arguments:  # fmt: skip
    """Arguments, of which a misspelt one counts as the one that was meant: only its spelling is said to be wrong."""
    right = meant(given, arguments.load().arguments)
    values = {**derived, **{right.get(name, name): value for name, value in given.items()}}
    return Arguments(given, values, where, arguments.load(), on_ray, gpus)


def _placed(problem: Problem, document: Document, key: str) -> Problem:
    """A problem that names no place in this document gets the place of the key it came through."""
    inside = problem.where.startswith(str(document.path)) or re.search(r":\d+:\d+$", problem.where)
    return problem if inside and ":" in problem.where else dataclasses.replace(problem, where=document.where(key))


def _placeholders(document: Document) -> Iterator[Finding]:
    """What nobody filled in."""
    for path, value in secrets_in_files.leaves(document.value):
        if isinstance(value, str) and (match := _PLACEHOLDER.search(value)):
            what = f"{match[0]} is a placeholder"
            yield of(Problem(what, document.where(*path), "put in your own value", "placeholder"))
