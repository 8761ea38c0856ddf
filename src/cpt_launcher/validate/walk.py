"""Which files of a folder `cpt validate` looks into: not those that programs put there."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cpt_launcher import jsontext, shipped
from cpt_launcher.config import arguments, read
from cpt_launcher.config.launcher import LAUNCHER_KEYS
from cpt_launcher.staging.dataset import REMOTE_KEYS
from cpt_launcher.wording import counted

SUFFIXES = (".yaml", ".yml", ".json")
SKIPPED = ("__pycache__",)  # without a word, as hidden folders
# Keys that many a program's files have at the top.
_COMMON = ("name", "env", "secrets")
_SIGNS = (*LAUNCHER_KEYS, *arguments.DEEPSPEED_SIGNS, *read.PLAIN_SIGNS)
_SIGN = re.compile(
    rf"""^[\s{{]*["']?({"|".join(sorted({*_SIGNS, *REMOTE_KEYS, "file_name"} - {*_COMMON}))})["']?\s*:"""
)


def files(folder: Path, on_error: Callable[[OSError], None], skipped: Counter[str]) -> Iterator[Path]:
    """YAML and JSON files below a folder; links to folders are not followed.

    Args:
        skipped: counts the folders that are left out, by what they are.
    """
    for root, folders, names in os.walk(folder, onerror=on_error):
        seen = {name: _skipped(Path(root, name)) for name in sorted(folders) if not _is_hidden(name)}
        skipped.update(kind for name, kind in seen.items() if kind and not Path(root, name).is_symlink())
        folders[:] = [name for name, kind in seen.items() if kind is None]
        yield from (Path(root, name) for name in sorted(names) if name.endswith(SUFFIXES))


def remark(skipped: Counter[str]) -> str:
    """What was left out, in words; empty if nothing."""
    kinds = ", ".join(counted(count, kind) for kind, count in sorted(skipped.items()))
    return f"skipped: {kinds} (name one to look into it)" if kinds else ""


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED


def _skipped(folder: Path) -> str | None:
    """What a folder is if it is not looked into."""
    if shipped.is_dir(folder / ".cpt"):
        return "storage"
    if shipped.is_file(folder / "cpt" / "run.json"):
        return "run"
    if shipped.is_file(folder / "trainer_state.json"):
        return "checkpoint"
    if _is_model(folder / "config.json"):
        return "model"
    if re.match(r"(models|datasets)--", folder.name):
        return "Hugging Face cache"
    if shipped.is_file(folder / "pyvenv.cfg"):
        return "virtual environment"
    return "node_modules folder" if folder.name == "node_modules" else None


def _is_model(path: Path) -> bool:
    try:
        values = jsontext.load(path)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and bool({"model_type", "architectures"} & set(values))


def is_ours(values: Mapping[str, object]) -> bool:
    """Whether a mapping that nobody named is a launcher config, a DeepSpeed JSON or a LLaMA-Factory YAML: one key of
    such may stand in any program's file.
    """
    if arguments.is_deepspeed(values):
        return 2 * len(set(values) & arguments.load().deepspeed) >= len(values)
    if read.is_plain(values):
        known = [key for key in values if key in arguments.load().arguments or key.startswith("ray_")]
        return len(known) > 1 and 2 * len(known) >= len(values)
    launcher = set(values) & set(LAUNCHER_KEYS)
    return len(launcher) > 1 and not launcher <= set(_COMMON)


def may_be_ours(path: Path) -> bool:
    """Whether a file that cannot be parsed, and that nobody named, looks as if it were meant for cpt."""
    if path.name == shipped.REGISTRY:
        return True
    if not shipped.is_file(path):  # a pipe is not waited for
        return True
    try:
        with path.open("rb") as file:
            text = file.read(1 << 20)
    except OSError:
        return True
    is_text = b"\0" not in text
    lines = text.decode("utf-8", "replace").splitlines()
    return (not is_text and path.suffix != ".json") or (is_text and any(_SIGN.match(line) for line in lines))
