"""The checkpoints of a run: which are complete, what can go on from them, and what to do with those that are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_launcher import disk
from cpt_launcher.errors import ConfigError, Problem
from cpt_launcher.ray_worker import MARKER


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
        """Empty if `workers` workers can go on from it, else why not."""
        if self.missing:
            return self.missing
        if not self.has_optimizer:
            return "it holds weights only"
        if self.workers not in (None, workers):
            return f"it was written by {self.workers} workers, and DeepSpeed goes on only with as many"
        return ""


def find(output: Path, run_dir: Path | None = None, *, marked: bool = False) -> tuple[Checkpoint, ...]:
    """The `checkpoint-STEP` folders under an output folder, and Ray's own copies under `run_dir`; by step.

    Args:
        marked: the run writes markers, so a checkpoint without one was not written to its end.
    """
    found = [_read(path, marked=marked) for path in output.glob("checkpoint-*") if path.name[11:].isdigit()]
    if run_dir is not None:
        copies = (path for path in run_dir.glob("TorchTrainer_*/checkpoint_*/checkpoint") if not path.is_symlink())
        found += [_read(path, copied=True) for path in copies if path.is_dir()]
    return tuple(sorted(found, key=lambda item: (item.step, not item.copied)))


def choose(output: Path, workers: int, *, marked: bool) -> tuple[Checkpoint | None, tuple[Checkpoint, ...]]:
    """The newest complete checkpoint, and those newer than it, which LLaMA-Factory would otherwise resume from.

    Raises:
        ConfigError: the newest complete one cannot be gone on from with that many workers.
    """
    found = find(output, marked=marked)
    complete = [item for item in found if item.complete]
    newest = complete[-1] if complete else None
    if newest and (reason := newest.resumable(workers)):
        hint = "set resources to as many workers, or start over with --fresh"
        raise ConfigError(Problem(f"cannot go on from {newest.path.name}: {reason}", str(newest.path), hint))
    return newest, tuple(item for item in found if newest is None or item.step > newest.step)


def clear(broken: Sequence[Checkpoint], *, remove: bool) -> list[str]:
    """Rename half-written checkpoints, or `remove` them where the disk is full; says what was done with each."""
    said = []
    for item in broken:
        if remove:
            disk.remove_tree(item.path)
            said.append(
                f"{item.path.name} was not written to its end ({item.missing}) and is removed: the disk is full"
            )
        else:
            said.append(
                f"{item.path.name} was not written to its end ({item.missing}); it is now {disk.set_aside(item.path)}"
            )
    return said


def _read(path: Path, *, marked: bool = False, copied: bool = False) -> Checkpoint:
    facts = _json(path / MARKER)
    state = _json(path / "trainer_state.json")
    files = facts.get("files")
    if isinstance(files, dict):
        missing = next((why for name, size in files.items() if (why := _differs(path / name, size))), "")
        step, loss, workers = facts.get("step"), facts.get("loss"), facts.get("workers")
    else:
        history = state.get("log_history")
        rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
        step, workers = state.get("global_step"), len(list(path.glob("rng_state*.pth"))) or None
        loss = next((row["loss"] for row in reversed(rows) if "loss" in row), None)
        missing = f"{MARKER} is missing" if marked else _unfinished(path, state)
    shards = list(path.glob("global_step*/*_optim_states.pt"))
    return Checkpoint(
        path=path,
        step=step if isinstance(step, int) else int(path.name[11:] or 0) if path.name[11:].isdigit() else 0,
        loss=loss if isinstance(loss, int | float) else None,
        size=sum(_size(file) for file in path.rglob("*")),
        missing=missing,
        workers=workers if isinstance(workers, int) else None,
        stage=3 if any(path.glob("global_step*/zero_pp_rank_*_model_states.pt")) else 2 if shards else 0,
        has_optimizer=bool(shards) or (path / "optimizer.pt").is_file(),
        copied=copied,
    )


def _unfinished(path: Path, state: dict[str, object]) -> str:
    """Without a marker: rank 0 writes trainer_state.json last (transformers 4.52, Trainer._save_checkpoint), after its
    shards and its random state; every rank has one of each.
    """
    if not state:
        return "trainer_state.json is missing or cut short"
    ranks, states = len(list(path.glob("global_step*/*_optim_states.pt"))), len(list(path.glob("rng_state*.pth")))
    return f"{states} random states of {ranks} ranks" if ranks and states not in (0, ranks) else ""


def _differs(path: Path, size: object) -> str:
    try:
        have = path.stat().st_size
    except OSError:
        return f"{path.name} is missing"
    return "" if have == size else f"{path.name} has {have:,} bytes of {size:,}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
