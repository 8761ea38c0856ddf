"""The checkpoints of a run: which are complete, what can resume from them, and what to do with those that are not."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cpt_launcher import disk, jsontext, safe_open
from cpt_launcher.errors import ConfigError, NotReadyError, Problem
from cpt_launcher.stack.worker import MARKER
from cpt_launcher.wording import counted


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder. `size` is in bytes; `missing` says what it lacks, empty where it is complete.

    `workers` and `stage` are those of the run that wrote it: DeepSpeed resumes only with as many ranks
    (runtime/engine.py, ZeRORuntimeException). `copied`: Ray's own copy, made without this launcher.
    """

    path: Path
    step: int
    loss: float | None
    size: int
    missing: str
    workers: int | None
    stage: int
    has_optimizer: bool
    copied: bool = False

    @property
    def complete(self) -> bool:
        return not self.missing

    def resumable(self, workers: int) -> str:
        """Empty if `workers` workers can resume from it, else why not."""
        if self.missing:
            return self.missing
        if not self.has_optimizer:
            return "it holds weights only"
        if self.workers not in (None, workers):
            return f"it was written by {counted(self.workers or 0, 'worker')}, and DeepSpeed resumes only with as many"
        return ""


def find(output: Path, run_dir: Path | None = None, *, marked: bool = False) -> tuple[Checkpoint, ...]:
    """The `checkpoint-STEP` folders under an output folder, and Ray's own copies under `run_dir`; by step.

    Args:
        marked: the run writes markers, so a checkpoint without one was not written to its end.
    """
    found = [read(path, marked=marked) for path in output.glob("checkpoint-*") if _step(path.name) is not None]
    if run_dir is not None:
        copies = (path for path in run_dir.glob("TorchTrainer_*/checkpoint_*/checkpoint") if not path.is_symlink())
        found += [read(path, copied=True) for path in copies if path.is_dir()]
    return tuple(sorted(found, key=lambda item: (item.step, not item.copied)))


def choose(output: Path, workers: int, *, marked: bool) -> tuple[Checkpoint | None, tuple[Checkpoint, ...]]:
    """The newest complete checkpoint, and those newer than it, which LLaMA-Factory would otherwise resume from.

    Raises:
        ConfigError: the newest complete one cannot be resumed from with that many workers.
    """
    found = find(output, marked=marked)
    complete = [item for item in found if item.complete]
    newest = complete[-1] if complete else None
    if newest and (reason := newest.resumable(workers)):
        hint = "set resources to as many workers, or start over with --fresh"
        raise ConfigError(Problem(f"cannot resume from {newest.path.name}: {reason}", str(newest.path), hint))
    return newest, tuple(item for item in found if newest is None or item.step > newest.step)


def clear(broken: Sequence[Checkpoint], *, remove: bool) -> list[str]:
    """Rename incomplete checkpoints, or `remove` them where the disk is full; says what was done with each."""
    said = []
    for item in broken:
        what = f"{item.path.name} is incomplete ({item.missing})"
        if remove:
            disk.remove_tree(item.path)
            said.append(f"{what} and is removed: the disk is full")
        else:
            said.append(f"{what}; it is now {disk.set_aside(item.path)}")
    return said


def markers(output: Path) -> dict[Path, tuple[int, int]]:
    """The checkpoint folders that carry a marker, and what changes when it is written anew."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(output):  # noqa: PTH208 - names alone: a look every two seconds, over days
            if _step(name) is not None:
                with contextlib.suppress(OSError):
                    marker = (output / name / MARKER).stat()
                    found[output / name] = (marker.st_ino, marker.st_mtime_ns)
    return found


def require_ours(folder: Path, trusted: Collection[str]) -> None:
    """Check that a checkpoint is this user's own, or root's, or that of somebody who is trusted (by name or number):
    DeepSpeed and PyTorch read checkpoints by running what is in them. Also for the file that says how to load it.

    Raises:
        NotReadyError: it is somebody else's.
    """
    inside = (path for path in folder.rglob("*") if _step(path.relative_to(folder).parts[0]) is None)
    ours = {0, os.geteuid()}
    for path in (folder, *inside):
        try:
            owner = path.lstat().st_uid
        except OSError:  # gone meanwhile
            continue
        name = safe_open.user_name(owner)
        if owner in ours or name in trusted or str(owner) in trusted:
            continue
        if not safe_open.is_ours(owner, path.parent):
            what = f"it is {name}'s, and loading the checkpoint could run what {name} put there"
            hint = f"if that is meant, and you trust {name}: --trust-owner {name}"
            raise NotReadyError(Problem(what, str(path), hint))
        ours.add(owner)


def require_resuming_ours(output: Path | None, trusted: Collection[str]) -> None:
    """The same of the checkpoint that a run would resume from, if there is one.

    Raises:
        NotReadyError: it is somebody else's.
    """
    complete = [] if output is None else [item for item in find(output, marked=bool(markers(output))) if item.complete]
    if complete:
        require_ours(complete[-1].path, trusted)


def read(path: Path, *, marked: bool = False, copied: bool = False) -> Checkpoint:
    """One checkpoint folder; see `find`."""
    facts, state = jsontext.mapping(path / MARKER), jsontext.mapping(path / "trainer_state.json")
    sizes = _sizes(path)
    if "files" in facts:
        missing = _damage(facts["files"], sizes)
        step, loss, workers = facts.get("step"), facts.get("loss"), facts.get("workers")
    else:
        history = state.get("log_history")
        rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
        step, workers = state.get("global_step"), len(_named(sizes, "rng_state*.pth")) or None
        loss = next((row["loss"] for row in reversed(rows) if "loss" in row), None)
        missing = f"not written to its end: {MARKER} is missing" if marked else _unfinished(sizes, state)
    shards = _named(sizes, "global_step*/*_optim_states.pt")
    parameters = _named(sizes, "global_step*/zero_pp_rank_*_model_states.pt")
    return Checkpoint(
        path=path,
        step=step if isinstance(step, int) and jsontext.is_count(step) else _step(path.name) or 0,
        loss=loss if isinstance(loss, int | float) and jsontext.is_number(loss) else None,
        size=sum(sizes.values()),
        missing=missing,
        workers=workers if isinstance(workers, int) and jsontext.is_count(workers) else None,
        stage=3 if parameters else 2 if shards else 0,
        has_optimizer=bool(shards) or "optimizer.pt" in sizes,
        copied=copied,
    )


def _step(name: str) -> int | None:
    """The number in `checkpoint-NUMBER`; None for other names."""
    start, _, number = name.partition("-")
    return int(number) if start == "checkpoint" and number.isdecimal() else None


def _sizes(folder: Path) -> dict[str, int]:
    """The files of a folder with their sizes in bytes, each looked at once."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):
                have = path.stat()
                if stat.S_ISREG(have.st_mode):
                    found[path.relative_to(folder).as_posix()] = have.st_size
    return found


def _named(sizes: Mapping[str, int], pattern: str) -> list[str]:
    depth = pattern.count("/")
    return [name for name in sizes if name.count("/") == depth and PurePosixPath(name).match(pattern)]


def _damage(files: object, sizes: Mapping[str, int]) -> str:
    """What of a marker's files is not as it says. Only files of the folder count, whatever a marker names."""
    if not isinstance(files, dict) or not files:
        return f"{MARKER} names no files"
    if gone := [PurePosixPath(name).name for name in files if name not in sizes]:
        return f"{gone[0]} is missing" if len(gone) == 1 else f"{gone[0]} and {len(gone) - 1} more are missing"
    for name, size in files.items():
        have = sizes[name]
        if have != size:
            return f"{PurePosixPath(name).name} has {have:,} bytes of {f'{size:,}' if jsontext.is_count(size) else '?'}"
    return ""


def _unfinished(sizes: Mapping[str, int], state: Mapping[str, object]) -> str:
    """Without a marker: rank 0 writes trainer_state.json last (transformers 4.52, Trainer._save_checkpoint), after its
    shards and its random state; every rank has one of each.
    """
    if not state:
        return "trainer_state.json is missing or cut short"
    ranks, states = len(_named(sizes, "global_step*/*_optim_states.pt")), len(_named(sizes, "rng_state*.pth"))
    return f"{states} random states of {ranks} ranks" if ranks and states not in (0, ranks) else ""
