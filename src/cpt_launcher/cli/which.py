"""Which run and which storage a command means, and what to name instead where there is none."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from shlex import quote

from cpt_launcher import shipped
from cpt_launcher.errors import ConfigError, Problem, StorageError
from cpt_launcher.runs import history

SHOWN = 10  # runs that are named


def run(text: str, storage: Path | None) -> history.Run:
    """See `history.find`; a path that is none of a run is answered with the runs about it.

    Raises:
        ConfigError: there is no such run.
        StorageError: there is no such storage.
    """
    _refuse_file(storage)
    try:
        return history.find(text, storage, os.environ)
    except ConfigError:
        path = Path(text)
        is_config = path.suffix in (".yaml", ".yml") and path.is_file()
        problem = None if is_config else _about(path, is_path="/" in text or not (storage or _exported()))
        if problem is None:
            raise
        raise ConfigError(problem) from None


def place(storage: Path | None) -> Path:
    """See `history.choose_storage`."""
    _refuse_file(storage)
    return history.choose_storage(storage, os.environ)


def refuse_file(storage: Path) -> None:
    """A storage is a folder, or is not there yet.

    Raises:
        StorageError: it is a file, or lies below one.
    """
    found = next((path for path in (storage, *storage.parents) if os.path.lexists(path)), storage)
    if shipped.exists(found) and not shipped.is_dir(found):
        hint = "name the folder that holds the runs and the data: storage: DIR in the config, or --storage DIR"
        raise StorageError(Problem("the storage is a file, not a folder", str(found), hint))


def _refuse_file(storage: Path | None) -> None:
    given = storage or (Path(_exported()) if _exported() else None)
    if given is not None:
        refuse_file(given)


def _exported() -> str:
    return os.environ.get("CPT_STORAGE", "")


def _about(path: Path, *, is_path: bool) -> Problem | None:
    """What to name instead of a path that is not a run's folder; None where nothing is known about it."""
    inside = next((above for above in path.parents if os.path.lexists(above / "cpt" / "run.json")), None)
    if inside is not None:
        return Problem(
            "that is inside a run, and not the run's folder", str(path), f"name the run: {quote(str(inside))}"
        )
    if shipped.is_dir(path) and (names := _names(path)):
        hint = f"runs in {path}: {', '.join(names[:SHOWN])}; name one: {quote(str(path / names[0]))}"
        return Problem("that is a folder with runs, and not a run's", str(path), hint)
    if is_path and (names := _names(path.parent)):
        there = f"runs in {path.parent}: {', '.join(names[:SHOWN])}; name one: {quote(str(path.parent / names[0]))}"
        close = next(iter(difflib.get_close_matches(path.name, names, 1)), None)
        hint = f"did you mean {quote(str(path.parent / close))}?" if close else there
        return Problem(f"there is no run {path.name}", str(path.parent), hint)
    return None


def _names(folder: Path) -> list[str]:
    return [run.layout.run for run in history.runs(folder)]
