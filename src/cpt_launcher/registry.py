"""The storage's own dataset registry: merged, never losing somebody else's entries."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cpt_launcher import dataset, disk
from cpt_launcher.disk import Outcome
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.layout import Layout

Entries = Mapping[str, Mapping[str, object]]


def refuse_conflicts(layout: Layout, entries: Entries) -> None:
    """Look before anything is copied; `merge` looks again.

    Raises:
        ConfigError: the registry has another entry of one of the names.
    """
    known = _read(layout)
    hint = "give yours another name, or overwrite it with cpt stage-data --force"
    other = [name for name, entry in entries.items() if name in known and known[name] != entry]
    if other:
        raise ConfigError(
            *(Problem(_differs(name, known[name], entries[name]), str(layout.registry), hint) for name in other)
        )


def merge(layout: Layout, entries: Entries, *, force: bool) -> tuple[Outcome, int]:
    """Put entries into the registry under the storage's lock; those of other people stay as they are. Returns what
    became of the file, and its bytes.

    Raises:
        ConfigError: it has another entry of one of the names, and `force` is off.
        StorageError: it cannot be written.
    """
    with disk.lock(layout.lock):
        if not force:
            refuse_conflicts(layout, entries)
        text = json.dumps({**_read(layout), **entries}, indent=2, ensure_ascii=False) + "\n"
        return disk.write_text(layout.registry, text), len(text.encode())


def _read(layout: Layout) -> dict[str, dict[str, object]]:
    if not layout.registry.is_file():
        return {}
    return {name: dict(entry.fields) for name, entry in dataset.read_registry(layout.registry).items()}


def _differs(name: str, theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
    return f"the storage's registry has another entry '{name}': it differs in {', '.join(keys)}"
