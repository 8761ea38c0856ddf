"""Dataset registries: LLaMA-Factory's `dataset_info.json`, plus `source`, where an entry's bytes come from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cpt_launcher import assets, urls, yamlfile
from cpt_launcher.errors import ConfigError, DataError, Problem
from cpt_launcher.suggest import unknown

COMPRESSED = (".gz", ".zst")
REMOTE_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class Entry:
    """One dataset: its registry fields without `source`, the registry it stands in, and where its bytes are.

    `source` is an URL or an absolute path; None where LLaMA-Factory fetches the data itself.
    """

    name: str
    fields: Mapping[str, object]
    registry: Path
    source: str | None

    @property
    def cloud(self) -> str | None:
        """The object that LLaMA-Factory is to read the data from, if it is not to be a file on the storage."""
        given = self.fields.get("cloud_file_name")
        return given if isinstance(given, str) else None

    @property
    def staged_name(self) -> str:
        """The file's or folder's name on the storage."""
        return plain_name(PurePosixPath(str(self.fields.get("file_name") or self.source)).name)

    def staged(self, storage: Path) -> dict[str, object]:
        """The entry as the storage's registry holds it: `file_name` is the staged path."""
        if self.source is None or self.cloud is not None:
            return dict(self.fields)
        return {**self.fields, "file_name": str(storage / self.staged_name)}


@dataclass(frozen=True)
class Copy:
    """One file to be on the storage: an URL or a path, where it goes, and if it is data, its text column.

    With `cloud` (an `s3://` or `gs://` URL) it goes there, and `target` is where it is put together first. `shard_of`:
    the source folder and its place, for one of a folder's files.
    """

    source: str
    target: Path
    column: str | None = None
    cloud: str | None = None
    shard_of: tuple[str, Path] | None = None

    @property
    def shown(self) -> str:
        """The source as it may be seen and recorded: without credentials."""
        return urls.shown(self.source)

    @property
    def place(self) -> str:
        """Where it is in the end."""
        return self.cloud or str(self.target)

    @property
    def is_remote(self) -> bool:
        return "://" in self.source


def plain_name(name: str) -> str:
    """A file's name once it is decompressed."""
    return next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)


def read_registry(path: Path) -> dict[str, Entry]:
    """All entries of one registry file.

    Raises:
        ConfigError: not JSON, or an entry that is not a mapping with a place to read from.
    """
    document = yamlfile.read(path)
    if not isinstance(document.value, dict):
        raise ConfigError(Problem("a dataset registry maps names to entries", str(path), rule="registry-entry"))
    entries, problems = {}, []
    for name, fields in document.value.items():
        if not isinstance(fields, dict):
            problems.append(Problem(f"entry '{name}' is not a mapping", document.where(name), rule="registry-entry"))
            continue
        source = _source(fields, path.parent)
        if source is None and not any(key in fields for key in REMOTE_KEYS):
            hint = 'give it "file_name" (a file beside the registry) or "source" (a path or an URL)'
            problems.append(Problem(f"entry '{name}' has no file", document.where(name), hint, "registry-entry"))
        plain = {key: value for key, value in fields.items() if key != "source"}
        entries[name] = Entry(name, plain, path, source)
    if problems:
        raise ConfigError(*problems)
    return entries


def _source(fields: Mapping[str, object], folder: Path) -> str | None:
    """`source`, else `file_name`, relative to the registry's folder as LLaMA-Factory reads it."""
    text = fields.get("source") or fields.get("file_name")
    if not isinstance(text, str) or not text:
        return None
    return text if "://" in text else str(assets.from_user(str(folder / os.path.expanduser(text))))  # noqa: PTH111


def find(names: Sequence[str], folders: Sequence[Path], storage: Path) -> tuple[Entry, ...]:
    """The entries called `names`: the first folder that has one wins, the storage's own registry comes last.

    Raises:
        ConfigError: a name that no registry has, with the near ones.
    """
    known: dict[str, Entry] = {}
    for folder in (*folders, storage):
        registry = folder / assets.REGISTRY
        if assets.is_file(registry):
            known = {**read_registry(registry), **known}
    if missing := list(unknown(names, known)):
        looked = ", ".join(str(folder / assets.REGISTRY) for folder in (*folders, storage))
        raise ConfigError(*(_unknown(name, near, looked) for name, near in missing))
    return tuple(known[name] for name in names)


def _unknown(name: str, near: str, looked: str) -> Problem:
    example = '{"file_name": "corpus.jsonl", "columns": {"prompt": "text"}}'
    hint = near or f"add an entry to dataset-configs/dataset_info.json: {example}"
    return Problem(f"no dataset '{name}' is registered", f"looked in {looked}", hint, "unknown-dataset")


def shards(folder: Path) -> list[Path]:
    """The files of a dataset's folder that staging takes along: no hidden ones, no markers such as `_SUCCESS`."""
    if not assets.is_dir(folder):
        return []
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".", "_")))


def copies(entry: Entry, storage: Path) -> tuple[Copy, ...]:
    """The files of an entry and their places on the storage.

    Raises:
        DataError: the file or folder is not there, or the folder is empty.
    """
    if entry.source is None:
        return ()
    target = storage / entry.staged_name
    columns = entry.fields.get("columns")
    column = str(columns["prompt"]) if isinstance(columns, dict) and "prompt" in columns else None
    if entry.cloud is not None:
        return (_cloud_copy(entry, storage, column),)
    if "://" in entry.source:
        return (Copy(entry.source, target, column),)
    source = Path(entry.source)
    if assets.is_file(source):
        return (Copy(str(source), target, column),)
    found = shards(source)
    if not found:
        what = f"the data of '{entry.name}' is not there: {source}"
        hint = "put the file there, or set the entry's file_name or source"
        raise DataError(Problem(what, str(entry.registry), hint, "registry-file"))
    return tuple(
        Copy(str(shard), target / plain_name(str(shard.relative_to(source))), column, shard_of=(str(source), target))
        for shard in found
    )


def refuse_collisions(copies: Sequence[Copy], registry: Path) -> None:
    """Two files that would get the same place on the storage would end as one, and both datasets as one of the two.

    Raises:
        ConfigError: there are such files.
    """
    first: dict[str, Copy] = {}
    problems = []
    for copy in copies:
        other = first.setdefault(copy.place, copy)
        if other.shown != copy.shown:
            what = f"{other.shown} and {copy.shown} would both be staged as {copy.place}"
            problems.append(Problem(what, str(registry.parent), 'give one entry another "file_name"', "registry-file"))
        elif copy.target == registry:
            what = f"{copy.shown} would be staged over the registry"
            problems.append(Problem(what, str(registry), 'give its entry another "file_name"', "registry-file"))
    if problems:
        raise ConfigError(*problems)


def _cloud_copy(entry: Entry, storage: Path, column: str | None) -> Copy:
    """LLaMA-Factory 0.9.3 reads `.json` and `.jsonl` objects (data/data_utils.py, read_cloud_json), whole."""
    cloud = str(entry.cloud)
    if not cloud.startswith(("s3://", "gs://", "gcs://")) or not cloud.endswith((".json", ".jsonl")):
        what = f"'{entry.name}' cannot be read from {cloud}"
        raise DataError(
            Problem(what, str(entry.registry), "an s3:// or gs:// object, .jsonl or .json", "registry-file")
        )
    return Copy(str(entry.source), storage / ".cpt" / "uploads" / PurePosixPath(cloud).name, column, cloud)
