"""Data, dataset registry and DeepSpeed JSON to the storage: each file whole or not at all, and only if it changed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from cpt_launcher import disk, urls
from cpt_launcher.config import names
from cpt_launcher.disk import Outcome
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.staging import collisions, corpus, dataset, manifest, places, registry, sources, texts, transfer
from cpt_launcher.staging.dataset import Copy
from cpt_launcher.staging.manifest import Record


@dataclass(frozen=True)
class Options:
    """How to stage.

    `force` overwrites what came from elsewhere; `verify` reads staged files again; `refetch` asks remote sources
    whether they changed; `skip_bad` leaves bad records out, to a quarantine file;
    `tokenizer` (a model's folder, or a tokenizer.json) counts tokens instead of estimating them.
    """

    force: bool = False
    verify: bool = False
    refetch: bool = True
    skip_bad: bool = False
    tokenizer: Path | None = None


DEFAULTS = Options()


@dataclass(frozen=True)
class Staged:
    """What became of one file; counts where it is data that was read.

    `tokens` only where a tokenizer counted them.
    """

    path: str
    outcome: Outcome
    size: int
    source: str
    documents: int | None = None
    text_bytes: int | None = None
    skipped: int = 0
    tokens: int | None = None
    empty: int = 0


@dataclass(frozen=True)
class StagedFolder:
    """What became of a folder's files, in sum; counts where all of them are data that was read."""

    path: str
    outcomes: Mapping[Outcome, int]
    documents: int | None = None
    text_bytes: int | None = None
    skipped: int = 0
    tokens: int | None = None
    empty: int = 0


Progress = Callable[[Copy, int, "int | None"], None]


def stage(
    copies: Sequence[Copy],
    entries: Mapping[str, Mapping[str, object]],
    storage: Path,
    *,
    report: Callable[[Staged | StagedFolder], None],
    progress: Progress = lambda *_: None,
    options: Options = DEFAULTS,
) -> tuple[Staged, ...]:
    """Put files and registry entries on the storage.

    Args:
        report: called after each file, of a folder's files once.
        progress: called with the file, its bytes so far and their number if known.

    Raises:
        ConfigError: a file or entry of the same name came from elsewhere, and `force` is off.
        DataError: a source cannot be read, or holds bad records.
        StorageError: the storage is absent, not writable or full.
    """
    disk.require_storage(storage)
    layout = Layout(storage, "")
    _refuse(copies, layout)
    wanted = [piece for copy in copies for piece in _pieces(copy)]
    _refuse(wanted, layout)
    stager = _Stager(layout, options, progress)
    former = stager.former(wanted)
    if not options.force:
        registry.refuse_conflicts(layout, entries, former)
    for folder in {storage, layout.lock.parent, *(copy.target.parent for copy in wanted)}:
        disk.require_no_foreign_links(storage, folder)
        disk.sweep(folder)
    gone = {path: folder for folder, paths in stager.no_longer_there(wanted).items() for path in paths}
    done = []
    try:
        with _InSum(report) as said:
            for copy in wanted:
                done.append(stager.one(copy))
                said.add(done[-1], copy.shard_of[1] if copy.shard_of and not copy.parts else None)
        with _InSum(report) as said:
            for path, folder in gone.items():
                disk.remove_tree(path)
                done.append(Staged(str(path), "removed", 0, ""))
                said.add(done[-1], folder)
    finally:
        manifest.add(layout, stager.fresh, [stager.name(path) for path in gone if not path.exists()])
    if entries:
        outcome, size = registry.merge(layout, entries, force=options.force, former=former)
        done.append(Staged(str(layout.registry), outcome, size, "registry"))
        report(done[-1])
    for path in stager.remove(former):
        done.append(Staged(str(path), "removed", 0, ""))
        report(done[-1])
    return tuple(done)


class _InSum:
    """Reports the files of a folder as one, as soon as the next file is of none or of another."""

    def __init__(self, report: Callable[[Staged | StagedFolder], None]) -> None:
        self._report = report
        self._folder: Path | None = None
        self._items: list[Staged] = []

    def __enter__(self) -> _InSum:
        return self

    def __exit__(self, *_: object) -> None:
        self._say()

    def add(self, item: Staged, folder: Path | None) -> None:
        """The next file; `folder` is None for one that is reported by itself."""
        if folder is None or folder != self._folder:
            self._say()
        self._folder = folder
        if folder is None:
            self._report(item)
        else:
            self._items.append(item)

    def _say(self) -> None:
        items, self._items = self._items, []
        if items:
            self._report(_in_sum(str(self._folder), items))


def _in_sum(folder: str, items: Sequence[Staged]) -> StagedFolder:
    there = [item for item in items if item.outcome != "removed"]

    def total(counts: Sequence[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return sum(known) if known and len(known) == len(counts) else None

    return StagedFolder(
        folder,
        Counter(item.outcome for item in items),
        total([item.documents for item in there]),
        total([item.text_bytes for item in there]),
        sum(item.skipped for item in there),
        total([item.tokens for item in there]),
        sum(item.empty for item in there),
    )


def _refuse(copies: Sequence[Copy], layout: Layout) -> None:
    collisions.refuse(copies, layout.registry)
    places.refuse(copies, layout)


class _Stager:
    """Stages file after file against the manifest as it was at the start."""

    def __init__(self, layout: Layout, options: Options, progress: Progress) -> None:
        self.fresh: dict[str, Record] = {}
        self._layout, self._options, self._progress = layout, options, progress
        self._known = manifest.read(layout)
        self._count = corpus.counter(options.tokenizer) if options.tokenizer else None

    def name(self, target: Path) -> str:
        return target.relative_to(self._layout.storage).as_posix()

    def former(self, copies: Sequence[Copy]) -> dict[Path, Path]:
        """Text files as an earlier version staged them, and what takes their place: those that the manifest says came
        from the same source, and nobody changed since; or that are gone, and entries may still name.
        """
        found = {}
        for copy in copies:
            old = copy.former
            known = self._known.get(self.name(old)) if old else None
            ours = known is not None and old is not None and known.source == copy.shown and known.matches(old)
            if old and (ours or not old.exists()):
                found[old] = copy.target
        return found

    def remove(self, former: Mapping[Path, Path]) -> list[Path]:
        """Take away what has been replaced; returns what is gone."""
        there = [path for path in former if path.is_file()]
        for path in there:
            disk.remove_tree(path)
        manifest.add(self._layout, {}, [self.name(path) for path in there])
        return there

    def no_longer_there(self, copies: Sequence[Copy]) -> dict[Path, list[Path]]:
        """Files in the datasets' folders, by folder, that their source folders have no more: LLaMA-Factory would
        still train on them.

        Raises:
            ConfigError: one that did not come from there, or was changed since: that is not ours to remove.
        """
        wanted = {copy.target for copy in copies}
        gone: dict[Path, list[Path]] = {}
        for source, folder in dict.fromkeys(copy.shard_of for copy in copies if copy.shard_of):
            for path in (path for path in dataset.visible(folder) if path not in wanted):
                known = self._known.get(self.name(path))
                staged_from = f"{source.rstrip('/')}/{path.relative_to(folder).as_posix()}"
                if known is None or not known.matches(path) or names.plain_name(known.source) != staged_from:
                    what = "a file in the dataset's folder is not of its source, and would be trained on"
                    raise ConfigError(Problem(what, str(path), "move it away"))
                gone.setdefault(folder, []).append(path)
        return gone

    def one(self, copy: Copy) -> Staged:
        if copy.cloud is not None:
            return self._to_cloud(copy, copy.cloud)
        name = self.name(copy.target)
        known = self._known.get(name)
        trusted = known if known and known.source == copy.shown and known.matches(copy.target) else None
        if trusted and (trusted.column != copy.column or not _is_wanted(copy, trusted)):
            trusted = None
        if trusted and self._count is not None and copy.column and trusted.tokens is None:
            trusted = None
        if trusted and self._options.verify and _sha256(copy.target) != trusted.sha256:
            trusted = None
        unknown = known is None and copy.sha256 is None
        if copy.is_remote and not self._options.refetch and copy.target.is_file() and (trusted or unknown):
            return _staged(copy, "identical", trusted)
        version = _version(copy)
        if trusted and version.stamp is not None and trusted.stamp == version.stamp:
            return _staged(copy, "identical", trusted)
        other = known is None or known.source != copy.shown or collisions.user(copy, known, self._layout) is not None
        foreign = copy.target.is_file() and other and not self._options.force
        if foreign and not copy.text and version.size is not None and version.size != copy.target.stat().st_size:
            raise collisions.foreign(copy, known, self._layout)
        return self._copy(copy, name, version, known if foreign else None, foreign=foreign)

    def _copy(self, copy: Copy, name: str, version: sources.Version, known: Record | None, *, foreign: bool) -> Staged:
        disk.require_space(self._layout.storage, version.size or 0)
        quarantine = self._quarantine(name) if copy.column else None
        seen, before = _identity(copy.target), _sha256(copy.target) if copy.target.is_file() else None
        with transfer.transferred(
            copy, version, transfer.How(quarantine, self._count), lambda done: self._progress(copy, done, version.size)
        ) as (
            part,
            done,
        ):
            if _identity(copy.target) != seen:  # another staging was quicker; the part's lock keeps further ones out
                before = _sha256(copy.target) if copy.target.is_file() else None
                foreign = not self._options.force
            if done.sha256 == before:
                part.discard()
            elif foreign:
                part.discard()
                raise collisions.foreign(copy, known, self._layout)
            else:
                part.publish()
        now = copy.target.stat()
        self.fresh[name] = record = _record(copy, version, done, now.st_size, now.st_mtime_ns)
        return _staged(copy, "identical" if done.sha256 == before else "replaced" if before else "created", record)

    def _quarantine(self, name: str) -> Path | None:
        """Where bad records go, which others stage to as well; None where they fail the copy."""
        if not self._options.skip_bad:
            return None
        path = self._layout.quarantine / f"{name}.jsonl"
        disk.require_no_foreign_links(self._layout.storage, path.parent)
        disk.share(self._layout.quarantine.parent)
        disk.share(self._layout.quarantine)
        return path

    def _to_cloud(self, copy: Copy, cloud: str) -> Staged:
        """Checked and put together on the storage, then uploaded whole."""
        known, there = self._known.get(cloud), sources.version_if_there(cloud)
        ours = known is not None and there is not None and known.target_stamp == there.stamp
        version = _version(copy)
        if (
            known
            and ours
            and (known.source, known.column) == (copy.shown, copy.column)
            and copy.sha256 in (None, known.sha256)
            and version.stamp
            and known.stamp == version.stamp
        ):
            return _staged(copy, "identical", known)
        if there is not None and not ours and not self._options.force:
            raise collisions.foreign(copy, known, self._layout)
        quarantine = self._quarantine(copy.target.name)
        with transfer.transferred(
            copy, version, transfer.How(quarantine, self._count), lambda done: self._progress(copy, done, version.size)
        ) as (part, done):
            same = known is not None and ours and known.sha256 == done.sha256
            if not same:
                sources.upload(str(part.path), cloud)
            part.discard()
        now = sources.version_if_there(cloud)
        record = replace(_record(copy, version, done, done.size, 0), target_stamp=now.stamp if now else None)
        self.fresh[cloud] = record
        return _staged(copy, "identical" if same else "replaced" if there else "created", record)


def _record(copy: Copy, version: sources.Version, done: transfer.Done, size: int, mtime_ns: int) -> Record:
    report = done.report
    return Record(
        source=copy.shown,
        stamp=version.stamp,
        bytes=size,
        mtime_ns=mtime_ns,
        sha256=done.sha256,
        staged=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        documents=report.documents if report else None,
        text_bytes=report.text_bytes if report else None,
        skipped=report.bad_count if report else 0,
        tokens=report.counted if report and report.count else None,
        column=copy.column,
        empty=report.empty_count if report else 0,
        rows=report.documents + (0 if copy.text else report.empty_count) if report else None,
    )


def _staged(copy: Copy, outcome: Outcome, record: Record | None) -> Staged:
    seen = (record.documents, record.text_bytes, record.skipped, record.tokens, record.empty) if record else ()
    size = record.bytes if record else copy.target.stat().st_size
    return Staged(copy.place, outcome, size, copy.shown, *seen)


def _pieces(copy: Copy) -> list[Copy]:
    """A remote folder as its files."""
    if not copy.is_folder:
        return [copy]
    found = sources.files(copy.source)
    if copy.text and all(names.plain_name(inner).endswith(texts.ENDING) for _, inner in found):
        whole_text = dataset.text_folder(copy.source, copy.target, [url for url, _ in found], copy.column, copy.text)
        return [replace(whole_text, entry=copy.entry)]
    whole, to, of = (urls.shown(copy.source), copy.target), copy.target, copy.entry
    return [Copy(url, to / names.plain_name(inner), copy.column, shard_of=whole, entry=of) for url, inner in found]


def _version(copy: Copy) -> sources.Version:
    """What a text file is made into goes by its version, by the unit, and by the content that is asked for."""
    if not copy.text:
        return sources.version(copy.source)
    remark = f"a record per {copy.text} {copy.sha256 or ''}".rstrip()
    return sources.version_of_all(copy.source, copy.files, remark)


def _is_wanted(copy: Copy, record: Record) -> bool:
    """Whether a staged file is the content that is asked for; of text files, the version says so."""
    return copy.text is not None or copy.sha256 in (None, record.sha256)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or written to."""
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_ino, now.st_size, now.st_mtime_ns


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(corpus.CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def as_json(staged: Sequence[Staged]) -> str:
    """The outcome of a staging as one JSON document."""
    return json.dumps({"staged": [asdict(item) for item in staged]}, indent=2)
