"""A run's files in one folder, to be a job's working directory: config, registry, DeepSpeed JSON, and this package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cpt_launcher import disk, shipped
from cpt_launcher.config import document as yamlfile
from cpt_launcher.config import names, read
from cpt_launcher.config.launcher import PlainConfig, RunConfig
from cpt_launcher.errors import ConfigError, DataError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.plan import plan
from cpt_launcher.staging import dataset, manifest
from cpt_launcher.staging.dataset import Copy, Entry

MOST = 100_000_000  # bytes of data that go along; Ray refuses working directories above 500 MiB
CONFIG = "config.yaml"
MARK = ".cpt-job"  # in a folder that `write` made: the hashes of its files
ENTRYPOINT = f"python -m cpt_launcher run {CONFIG}"


@dataclass(frozen=True)
class Bundle:
    """What goes into the folder: texts by their name, and files that are copied, with theirs. `sources`: the URLs and
    paths that the job will read its data from.
    """

    config: RunConfig
    texts: dict[str, str]
    files: dict[str, Path]
    sources: tuple[str, ...] = ()


def make(path: Path, overrides: Sequence[str]) -> Bundle:
    """Collect what the job needs of this machine.

    Raises:
        ConfigError: a LLaMA-Factory YAML, or a model or template that the job will not find.
        DataError: data that is neither small nor on the storage yet.
    """
    document = read.overridden(yamlfile.read(path), overrides)
    config = read.read(path, overrides)
    if isinstance(config, PlainConfig) or not isinstance(document.value, dict):
        raise ConfigError(Problem("a LLaMA-Factory YAML is no launcher config", str(path), "cpt job takes a config"))
    values = {**document.value, "storage": str(config.storage), "model": config.model}  # without this machine's ${VAR}
    texts: dict[str, str] = {}
    files = _package()
    if config.model.startswith("/") and not config.model.startswith((f"{config.storage}/", "/mnt/")):
        hint = f"put it under {config.storage}, which the job sees"
        raise ConfigError(Problem("the model is a folder of this machine", config.model, hint))
    if deepspeed := plan.deepspeed_file(config):
        files[f"{shipped.DEEPSPEED}/{deepspeed.name}"] = deepspeed
        values["deepspeed"] = deepspeed.name
    if config.template.endswith(".j2"):
        files[Path(config.template).name] = shipped.from_user(config.template)
        values["template"] = Path(config.template).name
    held_out = config.evaluation.datasets if config.evaluation else ()
    names = tuple(dict.fromkeys((*config.datasets, *held_out)))
    entries = dataset.find(names, shipped.search_path(shipped.DATASETS, path), config.storage)
    registry: dict[str, object] = {}
    read_from: list[str] = []
    for entry in entries:
        fields, data = _entry(entry, config)
        read_from += [entry.cloud] if entry.cloud else []
        if fields is not None:
            registry[entry.name] = fields
            read_from += data or ([entry.source] if entry.source else [])
            files |= {f"{shipped.DATASETS}/{name}": source for name, source in data.items()}
    texts[f"{shipped.DATASETS}/{shipped.REGISTRY}"] = json.dumps(registry, indent=2, ensure_ascii=False) + "\n"
    texts[CONFIG] = f"# {path.name}, as it is run by this job\n{yamlfile.dump(values)}"
    return Bundle(replace(config, path=path), texts, files, tuple(read_from))


def write(bundle: Bundle, folder: Path) -> None:
    """Make the folder, whole or not at all: a failure leaves the one that is there.

    Raises:
        ConfigError: something of the user's is in it.
        StorageError: it cannot be written.
    """
    require_own(folder)
    with disk.replacing(folder.resolve()) as part:
        for name, text in bundle.texts.items():
            disk.write_text(part / name, text)
        for name, source in bundle.files.items():
            disk.copy_file(source, part / name)
        disk.write_json(part / MARK, _hashes(part))


def describe(bundle: Bundle, folder: Path | None) -> str:
    """All of it as text; of this package's own files only how many they are. `folder`: where it goes, None for a
    temporary one.
    """
    own = _package()
    ours = [name for name, path in bundle.files.items() if path in own.values()]
    copied = [f"  {name}\n    <- {path}" for name, path in bundle.files.items() if name not in ours]
    texts = [f"--- {name}\n{text.rstrip()}\n" for name, text in bundle.texts.items()]
    where = folder or "a temporary folder"
    files = [f"Files to {where}:", *copied, f"  {len(ours)} files of cpt_launcher", ""]
    return "\n".join([*files, *texts])


def require_own(folder: Path) -> None:
    """Whether the folder may be replaced: it is absent, empty, or holds what `write` put there and nothing else.

    Raises:
        ConfigError: it may not.
    """
    hint = "name another folder with --out DIR, or move this one away"
    if not folder.exists() or (folder.is_dir() and folder.resolve() != Path.cwd() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or folder.resolve() == Path.cwd():
        what = (
            "the job's files need a folder of their own, and this is "
            + ("a file", "the working directory")[folder.is_dir()]
        )
        raise ConfigError(Problem(what, str(folder), hint))
    known = _marked(folder)
    if known is None:
        raise ConfigError(Problem("the folder is not empty, and no earlier cpt job made it", str(folder), hint))
    found = _hashes(folder)
    if strange := sorted(name for name in found if found[name] != known.get(name)):
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        what = f"the folder holds what cpt job did not write: {', '.join(strange[:3])}{more}"
        raise ConfigError(Problem(what, str(folder), hint))


def _marked(folder: Path) -> dict[str, object] | None:
    """What `write` put there; None where it was not `write`."""
    try:
        known = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) else None


def _hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its name; Python's own caches aside."""
    found = {}
    with disk.storage_errors(folder):
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[name] = "a link"
            elif path.is_file() and name != MARK and "__pycache__" not in path.parts:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _entry(entry: Entry, config: RunConfig) -> tuple[dict[str, object] | None, dict[str, Path]]:
    """An entry as the job's registry has it, with its files; None where the storage's own registry is enough."""
    if entry.on_storage:
        return None, {}
    checked: dict[str, object] = {"sha256": entry.sha256} if entry.sha256 else {}
    checked |= {"per_line": True} if entry.per_line else {}
    if entry.source is None or "://" in entry.source:
        source = {"source": entry.source} if entry.source else {}
        return {**entry.fields, **source, **checked}, {}
    copies = dataset.copies(entry, config.storage)
    if _staged(copies, config.storage):
        return None, {}
    sources = [Path(name) for copy in copies for name in copy.files]
    size = sum(path.stat().st_size for path in sources)
    if size > MOST:
        what = f"the data of '{entry.name}' ({size / 1e6:,.0f} MB) is not on {config.storage} yet"
        hint = f"cpt stage-data {config.path} --storage {config.storage}, where that is mounted"
        raise DataError(Problem(what, entry.source, hint))
    root, folder = Path(entry.source), f"data/{Path(entry.source).name}"
    files = {str(Path(folder) / path.relative_to(root)): path for path in sources}
    name = names.plain_name(entry.given_name)
    return {**entry.fields, "source": folder, "file_name": name, **checked}, files


def _staged(copies: Sequence[Copy], storage: Path) -> bool:
    known = manifest.read(Layout(storage, ""))
    return bool(copies) and all(
        (record := known.get(copy.target.relative_to(storage).as_posix())) is not None and record.matches(copy.target)
        for copy in copies
    )


def _package() -> dict[str, Path]:
    """This package's own files, so that every worker of the job has them, of this very version."""
    root = Path(__file__).parents[1]
    wanted = (path for path in root.rglob("*") if path.is_file() and path.suffix in (".py", ".json", ".j2"))
    return {f"{root.name}/{path.relative_to(root)}": path for path in wanted if "shipped" not in path.parts}
