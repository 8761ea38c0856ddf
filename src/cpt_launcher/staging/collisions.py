"""Two datasets of one place on the storage, in one staging or in two: the later one would be trained on as both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.staging import registry
from cpt_launcher.staging.dataset import Copy
from cpt_launcher.staging.manifest import Record

_RENAME = 'give one entry another "file_name"'


def refuse(copies: Sequence[Copy], listing: Path) -> None:
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
            problems.append(Problem(what, str(listing.parent), _RENAME, "registry-file"))
        elif differing := _differing(other, copy):
            what = f"'{other.entry}' and '{copy.entry}' would both be staged as {copy.place}, and differ in {differing}"
            problems.append(Problem(what, str(listing.parent), _RENAME, "registry-file"))
        elif copy.target == listing:
            what = f"{copy.shown} would be staged over the registry"
            problems.append(Problem(what, str(listing), 'give its entry another "file_name"', "registry-file"))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _differing(one: Copy, other: Copy) -> str:
    """What two copies of one source make differently of it, in words; empty if nothing. What is copied as it is serves
    any column.
    """
    made = one.text or other.text
    pairs = {
        "their text column": (one.column, other.column) if made else ("", ""),
        "per_line": (one.text, other.text),
        "sha256": (one.sha256, other.sha256),
    }
    return " and ".join(name for name, (ours, theirs) in pairs.items() if ours != theirs)


def user(copy: Copy, known: Record | None, layout: Layout) -> str | None:
    """An entry of the storage's registry that uses the copy's place and wants records of another column or unit there
    than the copy makes; None if there is none. What is copied as it is serves any column.
    """
    if not copy.text:
        return None
    place = copy.shard_of[1] if copy.shard_of else copy.target
    other_unit = known is not None and known.stamp is not None and f" a record per {copy.text}" not in known.stamp
    others = {name: column for name, column in registry.columns(layout, place).items() if name != copy.entry}
    return next((name for name, column in others.items() if other_unit or column != copy.column), None)


def foreign(copy: Copy, known: Record | None, layout: Layout) -> ConfigError:
    """The error for a place that something else has taken."""
    whose = f"from {known.source}" if known else "that cpt did not put there"
    if (known is None or known.source == copy.shown) and (name := user(copy, known, layout)):
        whose = f"that entry '{name}' of the storage's registry uses"
    hint = "give yours another file name, or overwrite it with cpt stage-data --force"
    return ConfigError(Problem(f"a file of this name {whose} has other content", copy.place, hint))
