"""What a machine has and lacks for runs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpt_launcher import disk
from cpt_launcher.errors import CptError
from cpt_launcher.launch import cluster, nodes, preflight
from cpt_launcher.runs import record
from cpt_launcher.runs.events import size

LEAST = 1_000_000_000  # bytes on a storage: less than a checkpoint of a model with 0.1 B parameters, and data


@dataclass(frozen=True)
class Item:
    """One thing looked at: what there is, and what is wrong with it, empty where nothing is."""

    name: str
    has: str
    lacks: str = ""
    hint: str = ""


def examine(environ: Mapping[str, str], storage: Path | None) -> tuple[Item, ...]:
    """Look at Python, the stack, GPUs, the compiler, Ray's cluster and the storage."""
    items = [_python(), _stack(), _gpus(environ), _compiler(environ), _transfer()]
    items.append(_cluster(environ))
    where = storage or (Path(environ["CPT_STORAGE"]) if environ.get("CPT_STORAGE") else None)
    return (*items, *([_storage(where)] if where else []))


def _python() -> Item:
    lacks = (
        "" if (3, 10) <= tuple(map(int, platform.python_version_tuple()[:2])) <= (3, 12) else "3.10 to 3.12 is needed"
    )
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Item("python", f"{platform.python_version()}, {cores} cores, {memory:.0f} GB memory", lacks)


def _stack() -> Item:
    have = record.versions()
    missing = [name for name in ("llamafactory", "deepspeed", "ray", "torch", "transformers") if name not in have]
    late = [f"{name} {have[name]} (at most {latest})" for name, latest in preflight.too_late(have)]
    lacks = "; ".join(text for text in (", ".join(missing) and f"not installed: {', '.join(missing)}", *late) if text)
    return Item("stack", ", ".join(f"{name} {version}" for name, version in have.items()), lacks, preflight.INSTALL)


def _gpus(environ: Mapping[str, str]) -> Item:
    names, have, usable = record.gpu_names(), preflight.gpus_here(), preflight.gpus_visible(environ)
    has = ", ".join(names) or f"{have or 'none'}"
    if usable < have:
        has += f"; {preflight.VISIBLE}={environ[preflight.VISIBLE]} leaves {usable} of {have} to runs started here"
    return Item("gpus", has)


def _compiler(environ: Mapping[str, str]) -> Item:
    found = shutil.which(environ.get("CXX", "c++"), path=environ.get("PATH"))
    return Item("compiler", found or "none (only CPU workers need one)")


def _transfer() -> Item:
    found = importlib.util.find_spec("hf_transfer") is not None
    return Item("hf_transfer", "installed" if found else "not installed (HF_HUB_ENABLE_HF_TRANSFER=1 needs it)")


def _cluster(environ: Mapping[str, str]) -> Item:
    if not cluster.near(environ):
        return Item("ray cluster", cluster.not_obeyed(environ) or "none: a run starts Ray on this machine")
    try:
        there = cluster.ask(environ)
    except CptError as error:
        return Item("ray cluster", "", str(error), error.problems[0].hint)
    return Item("ray cluster", "; ".join([there.address, *nodes.describe(there)]))


def _storage(storage: Path) -> Item:
    try:
        disk.require_storage(storage)
    except CptError as error:
        return Item("storage", str(storage), str(error), error.problems[0].hint)
    free = shutil.disk_usage(storage).free
    lacks = f"less than {size(LEAST)} is free" if free < LEAST else ""
    return Item("storage", f"{storage}, {size(free)} free", lacks, "free some space, or choose another storage")
