"""What can be said here of folders that other machines may have: an absent one is not always a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cpt_launcher import shipped
from cpt_launcher.errors import Problem
from cpt_launcher.validate.report import Finding, of

MOUNTS = ("/", "/mnt", "/media")  # other machines have folders in these that this one does not
_RULE = "model-folder"


def model(folder: Path, written: object, storage: Path, where: str) -> Iterator[Finding]:
    """A model's folder. `written` is how the config has it; nothing is known of what is below an absent storage."""
    if shipped.is_file(folder / "config.json") or (folder.is_relative_to(storage) and not shipped.is_dir(storage)):
        return
    problem = Problem(
        f"there is no model folder {folder}", where, "check the path; the demo's model is made by `cpt demo`", _RULE
    )
    if shipped.exists(folder):
        hint = "name the folder that holds the model's config.json and its weights"
        yield of(replace(problem, what=f"the model {folder} is no folder with a config.json", hint=hint))
    elif not str(written).startswith(("/", "$")) or (
        shipped.is_dir(folder.parent) and str(folder.parent) not in MOUNTS
    ):
        yield of(problem)
    else:
        hint = "right if the machines of the run have it there; else check the path"
        yield of(replace(problem, what=f"the model folder {folder} is not on this machine", hint=hint), "warning")


def storage(folder: Path) -> str:
    """A remark on a storage that is not here; empty where it is."""
    if shipped.is_dir(folder):
        return ""
    if shipped.exists(folder):
        return f"the storage {folder} is not a folder; cpt run would stop here"
    return f"the storage {folder} is not on this machine: what is on it was not looked at, and cpt run would stop here"
