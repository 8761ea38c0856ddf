"""Dataset registries: LLaMA-Factory's `dataset_info.json`, plus `source`, where an entry's bytes come from, `sha256`,
what they are, and `per_line`, whether each line of a text file is a document.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from cpt_launcher import shipped, urls
from cpt_launcher.config import document as yamlfile
from cpt_launcher.config import names
from cpt_launcher.config.suggest import unknown
from cpt_launcher.errors import ConfigError, DataError, Problem
from cpt_launcher.staging import sources, texts
from cpt_launcher.staging.texts import Unit

REMOTE_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
OUR_KEYS = ("source", "sha256", "per_line")  # LLaMA-Factory has no use for them


@dataclass(frozen=True)
class Entry:
    """One dataset: its registry fields without `OUR_KEYS`, the registry it stands in, and where its bytes are.

    `source` is a URL or an absolute path; None where LLaMA-Factory fetches the data itself. `sha256`: of the content
    that is expected, decompressed. `on_storage`: it stands in the storage's own registry, so that its data is there.
    """

    name: str
    fields: Mapping[str, object]
    registry: Path
    source: str | None
    sha256: str | None = None
    on_storage: bool = False
    per_line: bool = False

    @property
    def unit(self) -> Unit:
        """What a record is made of where the data is text files."""
        return "line" if self.per_line else "document"

    @functools.cached_property
    def is_text(self) -> bool:
        """Whether records are to be made of it: a text file by its name, or a local folder of them. A remote folder is
        looked into when it is staged; what is on the storage already stays as it is.
        """
        if self.source is None or self.cloud is not None or self.on_storage:
            return False
        if "://" not in self.source and shipped.is_dir(self.source):
            found = shards(Path(self.source))
            return bool(found) and all(_is_text(path.name) for path in found)
        return not sources.is_folder(self.source) and _is_text(self.given_name)

    @property
    def column(self) -> str | None:
        """The column of its text; for text files `text` where the entry names none."""
        columns = self.fields.get("columns")
        named = columns.get("prompt") if isinstance(columns, dict) else None
        return str(named) if named is not None else "text" if self.is_text else None

    @property
    def files(self) -> list[Path]:
        """Its local files."""
        return shards(Path(self.source)) or [Path(self.source)] if self.source and "://" not in self.source else []

    @property
    def cloud(self) -> str | None:
        """The object that LLaMA-Factory is to read the data from, if it is not to be a file on the storage."""
        given = self.fields.get("cloud_file_name")
        return given if isinstance(given, str) else None

    @property
    def staged_name(self) -> str:
        """The file's or folder's name on the storage: `file_name`'s last part, else the source's."""
        if self.on_storage:
            return str(PurePosixPath(str(self.source)).relative_to(self.registry.parent))
        name = names.plain_name(self.given_name)
        is_file = self.is_text and name.endswith(texts.ENDING)
        return f"{name.removesuffix(texts.ENDING)}.jsonl" if is_file else name

    @property
    def given_name(self) -> str:
        """`file_name`'s last part, else the source's; its ending says what the content is."""
        return PurePosixPath(sources.path_of(str(self.fields.get("file_name") or self.source))).name

    def staged(self, storage: Path) -> dict[str, object]:
        """The entry as the storage's registry holds it: `file_name` is the staged path."""
        if self.source is None or self.cloud is not None or self.on_storage:
            return dict(self.fields)
        columns = {"columns": {"prompt": self.column}} if self.is_text and "columns" not in self.fields else {}
        return {**self.fields, "file_name": str(storage / self.staged_name), **columns}


def _is_text(name: str) -> bool:
    return names.plain_name(name).endswith(texts.ENDING)


@dataclass(frozen=True)
class Copy:
    """One file to be on the storage: a URL or a path, where it goes, and if it is data, its text column.

    With `cloud` (an `s3://` or `gs://` URL) it goes there, and `target` is where it is put together first. `shard_of`:
    the source folder and its place, for one of a folder's files. `sha256`: of the content, if one is asked for.
    `there`: it is its own source, data that somebody put on the storage. `text`: records are made of text files, of
    `parts` where the source is a folder of them; of a remote folder, if that is what is in it. `entry`: the name of the
    entry that wants it.
    """

    source: str
    target: Path
    column: str | None = None
    cloud: str | None = None
    shard_of: tuple[str, Path] | None = None
    sha256: str | None = None
    there: bool = False
    text: Unit | None = None
    parts: tuple[str, ...] = ()
    entry: str = field(default="", compare=False)

    @property
    def files(self) -> tuple[str, ...]:
        """What is read for it: the source, or the files that it is put together of."""
        return self.parts or (self.source,)

    @property
    def former(self) -> Path | None:
        """Where an earlier version, which copied text files as they are, put a single one."""
        name = self.target.with_suffix(texts.ENDING)
        return name if self.text and not self.parts and name != self.target else None

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

    @property
    def is_folder(self) -> bool:
        """Whether it stands for the files of a remote folder, which is not looked into yet."""
        return sources.is_folder(self.source) and self.cloud is None and not self.parts

    @property
    def is_compressed(self) -> bool:
        return sources.path_of(self.source).endswith(names.COMPRESSED)


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
            hint = 'give it "file_name" (a file beside the registry) or "source" (a path or a URL)'
            problems.append(Problem(f"entry '{name}' has no file", document.where(name), hint, "registry-entry"))
        plain = {key: value for key, value in fields.items() if key not in OUR_KEYS}
        entries[name] = Entry(name, plain, path, source, _sha256(fields), per_line=fields.get("per_line") is True)
    if problems:
        raise ConfigError(*problems)
    return entries


def _sha256(fields: Mapping[str, object]) -> str | None:
    given = fields.get("sha256")
    return str(given).lower() if given is not None else None


def _source(fields: Mapping[str, object], folder: Path) -> str | None:
    """`source`, else `file_name`, relative to the registry's folder as LLaMA-Factory reads it."""
    text = fields.get("source") or fields.get("file_name")
    if not isinstance(text, str) or not text:
        return None
    return text if "://" in text else str(shipped.from_user(str(folder / os.path.expanduser(text))))  # noqa: PTH111


def find(wanted: Sequence[str], folders: Sequence[Path], storage: Path) -> tuple[Entry, ...]:
    """The entries called so: the first folder that has one wins, the storage's own registry comes last.

    Raises:
        ConfigError: a name that no registry has, with the near ones.
        DataError: see `_on_storage`.
    """
    known: dict[str, Entry] = {}
    for folder in folders:
        registry = folder / shipped.REGISTRY
        if shipped.is_file(registry):
            known = {**read_registry(registry), **known}
    document = None
    if shipped.is_file(storage / shipped.REGISTRY) and not set(wanted) <= set(known):
        document = yamlfile.read(storage / shipped.REGISTRY)
    theirs = document.value if document and isinstance(document.value, dict) else {}
    if missing := list(unknown(wanted, {**theirs, **known})):
        looked = ", ".join(str(folder / shipped.REGISTRY) for folder in (*folders, storage))
        raise ConfigError(*(_unknown(name, near, looked) for name, near in missing))
    return tuple(known[name] if name in known else _on_storage(name, document, storage) for name in wanted)


def _on_storage(name: str, document: yamlfile.Document | None, storage: Path) -> Entry:
    """An entry of the storage's own registry, where others write too. Its data is on the storage already, and nothing
    else is taken on its word: no `source`, and no file from elsewhere.

    Raises:
        DataError: it names no data, or some that is not below the storage.
    """
    assert document is not None
    assert isinstance(document.value, dict)
    fields, where = document.value[name], document.where(name)
    if not isinstance(fields, dict):
        raise DataError(Problem(f"entry '{name}' is not a mapping", where, "ask who put it there", "registry-entry"))
    plain = {key: value for key, value in fields.items() if key not in OUR_KEYS}
    entry = Entry(name, plain, storage / shipped.REGISTRY, None, on_storage=True)
    if any(plain.get(key) for key in REMOTE_KEYS):
        return entry
    given, root = plain.get("file_name"), os.path.realpath(storage)
    hint = "put the data on the storage with an entry of your own, in dataset-configs/dataset_info.json"
    if not isinstance(given, str) or not given:
        raise DataError(Problem(f"the storage's entry '{name}' has no file_name", where, hint, "registry-source"))
    real = Path(os.path.realpath(os.path.join(root, given)))  # noqa: PTH118, as LLaMA-Factory joins them
    if names.has_control(given) or not real.is_relative_to(root) or str(real) == root:
        what = f"the storage's entry '{name}' names a file that is not below the storage"
        raise DataError(Problem(what, document.where(name, "file_name"), hint, "registry-source"))
    return replace(entry, source=str(storage / real.relative_to(root)))


def _unknown(name: str, near: str, looked: str) -> Problem:
    example = '{"file_name": "corpus.jsonl", "columns": {"prompt": "text"}}'
    hint = near or f"add an entry to dataset-configs/dataset_info.json: {example}"
    return Problem(f"no dataset '{name}' is registered", f"looked in {looked}", hint, "unknown-dataset")


def shards(folder: Path) -> list[Path]:
    """The files of a dataset's folder that staging takes along: nothing hidden, nor in something hidden, no markers
    such as `_SUCCESS`, and nothing that tells of the data, such as `README.md`.
    """
    return [path for path in visible(folder) if not names.is_documentation(path.name)]


def visible(folder: Path) -> list[Path]:
    """All files of a folder but the hidden ones: LLaMA-Factory would load them."""
    return [path for path in _visible(folder) if path.is_file()]


def _visible(folder: Path) -> list[Path]:
    if not shipped.is_dir(folder):
        return []
    return sorted(path for path in folder.rglob("*") if not names.is_hidden(path.relative_to(folder).as_posix()))


def wrong_shards(folder: Path) -> tuple[str, str] | None:
    """What is wrong with a local folder of data and what to do about it, None if it can be staged.

    A link is followed only to what is in the folder itself: whoever can write there could have any file of this
    machine published. A snapshot in the Hugging Face cache is a folder of links to the blobs beside it.
    """
    root = os.path.realpath(folder)
    blobs = _blobs(Path(root))
    for path in _visible(folder):
        inner = path.relative_to(folder).as_posix()
        if wrong := names.wrong_inner(inner):
            return f"{inner!r} in {folder} cannot be staged: {wrong}", "rename it"
        real = Path(os.path.realpath(path))
        if path.is_symlink() and not real.is_relative_to(root) and not (blobs and real.is_relative_to(blobs)):
            what = f"the link {inner} leads out of the folder {folder}"
            return what, "put the file itself there, or name the folder that holds it"
    found = [path.name for path in shards(folder)]
    if wrong := names.wrong_kinds(found):
        return f"{wrong} ({folder})", "move the others away"
    return None if found else (f"the folder is empty: {folder}", "put the data there, or name another folder")


def _blobs(folder: Path) -> Path | None:
    """The blobs that a snapshot's links lead to: `datasets--OWNER--NAME/snapshots/REVISION` (huggingface_hub's
    documentation, "Understand caching").
    """
    for parent in folder.parents:
        if re.match(r"(datasets|models)--", parent.name) and folder.relative_to(parent).parts[0] == "snapshots":
            return parent / "blobs"
    return None


def copies(entry: Entry, storage: Path) -> tuple[Copy, ...]:
    """The files of an entry and their places on the storage; with `there`, where they are its own registry's.

    Raises:
        DataError: the file or folder is not there, or is nothing to stage.
    """
    return tuple(replace(copy, entry=entry.name) for copy in _copies(entry, storage))


def _copies(entry: Entry, storage: Path) -> tuple[Copy, ...]:
    if entry.source is None:
        return ()
    target = storage / entry.staged_name
    column = entry.column
    if "://" in entry.source and (wrong := sources.refused(entry.source)):
        what = f"'{entry.name}': {wrong}: {urls.shown(entry.source)}"
        raise DataError(Problem(what, str(entry.registry), sources.allowed(), "registry-source"))
    if entry.cloud is not None:
        return (_cloud_copy(entry, storage, column),)
    source = Path(entry.source)
    if "://" in entry.source or shipped.is_file(source):
        text = entry.unit if entry.is_text or sources.is_folder(entry.source) else None
        return (Copy(entry.source, target, column, sha256=entry.sha256, there=entry.on_storage, text=text),)
    if not shipped.is_dir(source):
        what = f"the data of '{entry.name}' is not there: {source}"
        hint = "put the file there, or set the entry's file_name or source"
        hint = "put it there, or give the run an entry of your own" if entry.on_storage else hint
        raise DataError(Problem(what, str(entry.registry), hint, "registry-file"))
    if Path(os.path.realpath(storage)).is_relative_to(os.path.realpath(source)):
        what = f"the storage lies in the folder of '{entry.name}', and would be staged into itself: {source}"
        raise DataError(Problem(what, str(entry.registry), "move the data to a folder of its own", "registry-file"))
    if found := wrong_shards(source):
        raise DataError(Problem(found[0], str(entry.registry), found[1], "registry-file"))
    if entry.is_text:
        return (text_folder(str(source), target, [str(shard) for shard in shards(source)], column, entry.unit),)
    return tuple(
        Copy(
            str(shard),
            target / names.plain_name(shard.relative_to(source).as_posix()),
            column,
            shard_of=(str(source), target),
            there=entry.on_storage,
        )
        for shard in shards(source)
    )


def text_folder(source: str, target: Path, files: Sequence[str], column: str | None, unit: Unit) -> Copy:
    """A folder of text files as one file of records: a corpus may be a million of them, and shared storages and
    LLaMA-Factory's loader are slow with many small files.
    """
    inner, whole = target / f"{target.name}.jsonl", (urls.shown(source), target)
    return Copy(source, inner, column or "text", shard_of=whole, text=unit, parts=tuple(files))


def wrong_cloud(cloud: str) -> str | None:
    """Why LLaMA-Factory cannot be given this object, None if it can. 0.9.3 reads `.json` and `.jsonl` objects
    (data/data_utils.py, read_cloud_json), whole.
    """
    if not cloud.startswith(("s3://", "gs://", "gcs://")) or not cloud.endswith((".json", ".jsonl")):
        return "it must be an s3:// or gs:// object, .jsonl or .json"
    return sources.refused(cloud)


def _cloud_copy(entry: Entry, storage: Path, column: str | None) -> Copy:
    cloud = str(entry.cloud)
    if wrong := wrong_cloud(cloud):
        what = f"'{entry.name}' cannot be read from {urls.shown(cloud)}"
        raise DataError(Problem(what, str(entry.registry), wrong, "registry-file"))
    target = storage / ".cpt" / "uploads" / PurePosixPath(cloud).name
    return Copy(str(entry.source), target, column, cloud, sha256=entry.sha256)


def any_remote(entries: Iterable[Mapping[str, object]]) -> bool:
    """Whether LLaMA-Factory reads one of the entries' data from elsewhere itself."""
    return any(key in fields for fields in entries for key in REMOTE_KEYS)
