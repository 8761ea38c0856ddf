"""The storage's own dataset registry: merged as text, so that somebody else's entries stay as they were written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from cpt_launcher import disk
from cpt_launcher.disk import Outcome
from cpt_launcher.errors import ConfigError, Problem, StorageError
from cpt_launcher.layout import Layout
from cpt_launcher.staging import dataset

Entries = Mapping[str, Mapping[str, object]]
_BLANK = re.compile(r"[ \t\r\n]*")


def refuse_conflicts(layout: Layout, entries: Entries, former: Mapping[Path, Path] = MappingProxyType({})) -> None:
    """Look before anything is copied; `merge` looks again. `former`: files that others take the place of.

    Raises:
        ConfigError: the registry has another entry of one of the names, or is no registry.
    """
    known, _ = _read(layout)
    hint = "give yours another name, or overwrite it with cpt stage-data --force"
    theirs = {name: _renamed(known[name], layout, former) for name in entries if name in known}
    other = [name for name in theirs if _differing(theirs[name], entries[name], layout)]
    if other:
        raise ConfigError(
            *(
                Problem(_differs(name, _differing(theirs[name], entries[name], layout)), str(layout.registry), hint)
                for name in other
            )
        )


def merge(
    layout: Layout, entries: Entries, *, force: bool, former: Mapping[Path, Path] = MappingProxyType({})
) -> tuple[Outcome, int]:
    """Put entries into the registry under the storage's lock; those of other people stay as they are, to the byte.
    Returns what became of the file, and its bytes.

    Raises:
        ConfigError: it has another entry of one of the names and `force` is off, or it is no registry.
        StorageError: it cannot be read or written.
    """
    with disk.lock(layout.lock):
        if not force:
            refuse_conflicts(layout, entries, former)
        known, text = _read(layout)
        new = {name: entry for name, entry in entries.items() if name not in known}
        changed = {name: entry for name, entry in entries.items() if name not in new}
        changed = {name: entry for name, entry in changed.items() if _differing(known[name], entry, layout)}
        text = _appended(_replaced(text, changed), new)
        return disk.write_text(layout.registry, text), len(text.encode())


def columns(layout: Layout, place: Path) -> dict[str, object]:
    """The entries that use a place on the storage, and the column each reads its text from.

    Raises:
        ConfigError: it is no registry.
        StorageError: it cannot be read.
    """
    found: dict[str, object] = {}
    for name, entry in _read(layout)[0].items():
        given = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and isinstance(given, str) and layout.storage / given == place:
            roles = entry.get("columns")
            found[name] = roles.get("prompt") if isinstance(roles, dict) else None
    return found


def _read(layout: Layout) -> tuple[dict[str, object], str]:
    """The registry's entries whatever they are, and its text."""
    path = layout.registry
    if not path.is_file():
        return {}, "{}\n"
    hint = "mend it, or ask who wrote it; cpt puts nothing over it"
    try:
        text = path.read_bytes().decode("utf-8-sig")
        value = json.loads(text)
    except OSError as error:
        raise StorageError(Problem(f"cannot read it: {error.strerror}", str(path), "check its owner")) from None
    except (ValueError, RecursionError) as error:
        what = f"the storage's registry is not valid JSON: {error}"
        raise ConfigError(Problem(what, str(path), hint, "yaml-syntax")) from None
    if not isinstance(value, dict):
        raise ConfigError(Problem("a dataset registry maps names to entries", str(path), hint, "registry-entry"))
    return value, text


def _differing(theirs: object, ours: Mapping[str, object], layout: Layout) -> list[str]:
    """The keys that LLaMA-Factory would read otherwise; a relative `file_name` is relative to the storage."""
    if not isinstance(theirs, dict):
        return ["everything"]

    def read(entry: Mapping[str, object], key: str) -> object:
        value = entry.get(key)
        return str(layout.storage / Path(value)) if key == "file_name" and isinstance(value, str) else value

    keys = {*theirs, *ours} - {*dataset.OUR_KEYS}
    return sorted(key for key in keys if read(theirs, key) != read(ours, key))


def _renamed(theirs: object, layout: Layout, former: Mapping[Path, Path]) -> object:
    """An entry as it is once files have taken the place of former ones."""
    given = theirs.get("file_name") if isinstance(theirs, dict) else None
    new = former.get(layout.storage / given) if isinstance(given, str) else None
    return {**theirs, "file_name": str(new)} if new and isinstance(theirs, dict) else theirs


def _differs(name: str, keys: list[str]) -> str:
    return f"the storage's registry has another entry '{name}': it differs in {', '.join(keys)}"


def _replaced(text: str, entries: Entries) -> str:
    """The text of an object with the values of some keys replaced, from the last to the first."""
    for name, start, end in reversed(list(_values(text))):
        if name in entries:
            text = text[:start] + _written(entries[name]) + text[end:]
    return text


def _appended(text: str, entries: Entries) -> str:
    """The text of an object with keys added after its last."""
    if not entries:
        return text
    end = max((end for _, _, end in _values(text)), default=None)
    new = ",\n".join(f"  {json.dumps(name, ensure_ascii=False)}: {_written(entry)}" for name, entry in entries.items())
    if end is None:
        return f"{{\n{new}\n}}\n"
    return f"{text[:end]},\n{new}\n{text[end:].lstrip()}"


def _written(entry: Mapping[str, object]) -> str:
    return json.dumps(entry, indent=2, ensure_ascii=False).replace("\n", "\n  ")


def _values(text: str) -> Iterator[tuple[str, int, int]]:
    """Each key of a valid JSON object, and where its value begins and ends."""
    decoder = json.JSONDecoder()

    def after(position: int, character: str) -> int:
        """Behind a character that comes after blanks, if it does."""
        found = _BLANK.match(text, position)
        assert found is not None
        return found.end() + (text[found.end() : found.end() + 1] == character)

    position = after(after(0, "{"), "")
    while text[position : position + 1] == '"':
        name, end = decoder.raw_decode(text, position)
        start = after(after(end, ":"), "")
        _, end = decoder.raw_decode(text, start)
        yield name, start, end
        position = after(after(end, ","), "")
