"""How much of what a model is evaluated on it was trained on: by the files' hashes, and the rows that entries take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_launcher.layout import Layout
from cpt_launcher.plan import heldout
from cpt_launcher.plan.heldout import Fields, Span
from cpt_launcher.staging import manifest
from cpt_launcher.staging.dataset import REMOTE_KEYS

_UNCOUNTED = 10**9  # rows of data that nobody counted: enough to tell slices from the front and from the end apart


@dataclass(frozen=True)
class _Data:
    """What one entry reads. `files` are those on the storage: hash (None where not known) and documents, by name."""

    place: tuple[str, ...]
    files: Mapping[str, tuple[str | None, int]]
    fields: Fields

    @property
    def documents(self) -> int:
        return sum(count for _, count in self.files.values()) or _UNCOUNTED

    @property
    def hashes(self) -> set[str | None]:
        return {digest for digest, _ in self.files.values()}


def trained_share(
    registry: Mapping[str, Fields],
    layout: Layout,
    recorded: Mapping[str, str],
    trained: Sequence[str],
    evaluated: Sequence[str],
    most: object = None,
) -> float | None:
    """The share of the documents of `evaluated` entries that are among those of `trained` ones; None if not known.

    Args:
        registry: fields of entries by name.
        recorded: hashes of the run's files, as they were when it was trained.
        most: LLaMA-Factory's `max_samples`.
    """
    known = manifest.read(layout)
    now = {name: record.sha256 for name, record in known.items()}
    ours = [_data(registry[name], layout, known, {**recorded}) for name in trained if name in registry]
    theirs = [_data(registry[name], layout, known, now) for name in evaluated]
    shares = [_share(one, ours, most) for one in theirs]
    if len(ours) < len(trained) or None in shares:
        return None
    sizes = [_length(_rows(one, most)) for one in theirs]
    return sum((share or 0) * size for share, size in zip(shares, sizes, strict=True)) / max(1, sum(sizes))


def _data(fields: Fields, layout: Layout, known: Mapping[str, manifest.Record], hashes: Mapping[str, str]) -> _Data:
    remote = tuple(f"{key} {fields[key]}" for key in (*REMOTE_KEYS, "subset", "folder") if fields.get(key))
    given = str(fields.get("cloud_file_name") or fields.get("file_name") or "")
    if not given:
        return _Data(remote, {}, fields)
    root = os.path.realpath(layout.storage)
    path = given if "://" in given else os.path.realpath(Path(root, given))
    name = path.removeprefix(f"{root}/")
    found = {each: record for each, record in known.items() if f"{each}/".startswith(f"{name}/")}
    files = {each: (hashes.get(each), heldout.counted(record, each) or 0) for each, record in found.items()}
    return _Data((path,), files, fields)


def _share(one: _Data, trained: Sequence[_Data], most: object) -> float | None:
    """Of one entry's documents; of files that are elsewhere among those trained on, all count."""
    rows = _rows(one, most)
    same = [other for other in trained if other.place == one.place]
    if any(None not in other.hashes and other.hashes != one.hashes for other in same):
        return None  # the data was replaced after the training
    if same:
        taken = [_rows(other, most) for other in same]
        if rows is None or None in taken:
            return None
        return _common(rows, [span for spans in taken for span in spans or ()]) / max(1, _length(rows))
    there = {digest for other in trained for digest in other.hashes}
    if not one.files or None in one.hashes or None in there or not all(other.files for other in trained):
        return None
    return sum(count for digest, count in one.files.values() if digest in there) / one.documents


def _rows(one: _Data, most: object) -> list[Span] | None:
    """The rows that an entry takes, of which LLaMA-Factory takes the first `most`."""
    found = heldout.spans(one.fields.get("split"), one.documents)
    if found is None or not isinstance(most, int) or most < 1:
        return found
    left, first = most, []
    for begin, end in found:
        taken = min(end - begin, left)
        first += [(begin, begin + taken)] if taken > 0 else []
        left -= max(0, taken)
    return first


def _length(spans: Sequence[Span] | None) -> int:
    """Rows in all."""
    return sum(max(0, end - begin) for begin, end in spans or ())


def _common(some: Sequence[Span], others: Sequence[Span]) -> int:
    """Rows of `some` that are in any of `others`, which may overlap."""
    merged: list[Span] = []
    for begin, end in sorted(others):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return sum(max(0, min(end, last) - max(begin, first)) for begin, end in some for first, last in merged)


def words(tokens: int, names: str, share: float | None) -> str:
    """What was evaluated on, for a person: held-out only where the run was trained on none of it."""
    if share == 0:
        return f"{tokens:,} held-out tokens ({names})"
    if share is None:
        return f"{tokens:,} tokens of {names} (whether the run was trained on them is not known)"
    part = "all" if share == 1 else "over 99%" if share > 0.995 else "under 1%" if share < 0.005 else f"{share:.0%}"
    return f"{tokens:,} tokens of {names}, {part} of which are in the run's training data"
