"""`run.json`: what a run is, how it was started and how it ended."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Literal, get_args

from cpt_launcher import jsontext
from cpt_launcher.disk import remove_tree, write_bytes, write_json
from cpt_launcher.errors import NotReadyError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.plan.plan import Plan

State = Literal["running", "finished", "failed", "interrupted", "lost"]
PACKAGES = (
    "cpt-launcher",
    "llamafactory",
    "deepspeed",
    "ray",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "mlflow",
)
# Clocks of two machines, and the storage between them, may be this far apart.
SILENT_SECONDS = 120.0
# What a run.json must hold where it holds it at all.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("host", "pid_started", "user", "started", "first_started", "checkpoints", "device"), (str, type(None))
    ),
    **dict.fromkeys(
        ("ended", "cause", "output", "mlflow_run", "config", "config_text", "directory"), (str, type(None))
    ),
    **dict.fromkeys(("tokens", "data", "versions", "resumed", "in_force", "trained_on"), (dict, type(None))),
    **dict.fromkeys(("restarts", "gpus", "overrides"), (list, type(None))),
}
_TOKENS = ("documents", "tokens_in", "tokens", "blocks", "lost")
RESERVE = 65_536  # bytes


@dataclass(frozen=True)
class Record:
    """The content of run.json: what it takes to do the run again. Times are ISO 8601 in UTC.

    `arguments` is the user's command line, `command` the training process's. `config_text`, `overrides` and `retries`
    are what `cpt resume` starts it with again, in `directory`. `data` maps staged files to their sha256. `checkpoints`:
    `marked` where the workers mark complete ones, `copied` where Ray copies them its own way. `resumed`: the checkpoint
    that it resumed from, with its step and the tokens trained on until then. `in_force`: arguments for which that
    checkpoint's values hold, not the config's. `tokens`: what came of the documents, where the workers counted.
    `started` is the last start, `first_started` the first. `restarts`: all of the others, each with what ended the
    training before and the `step` at which it did, or the one that it `resumed_from`.
    `trained_on`: steps, tokens trained on and epochs, from the first start on. `secrets`: names alone.
    """

    run: str
    state: State
    config: str
    config_sha256: str
    config_text: str
    overrides: tuple[str, ...]
    directory: str
    retries: int
    train_yaml: str
    train_yaml_sha256: str
    arguments: tuple[str, ...]
    command: tuple[str, ...]
    host: str
    pid: int
    pid_started: str
    user: str
    started: str
    first_started: str | None = None
    ended: str | None = None
    exit_code: int | None = None
    cause: str | None = None
    restarts: tuple[Mapping[str, object], ...] = ()
    checkpoints: Literal["marked", "copied"] = "copied"
    output: str | None = None
    workers: int = 1
    device: str = "gpu"
    gpus: tuple[str, ...] = ()
    tokens_per_step: int = 0
    resumed: Mapping[str, object] | None = None
    in_force: Mapping[str, object] = field(default_factory=dict)
    tokens: Mapping[str, object] | None = None
    trained_on: Mapping[str, object] | None = None
    mlflow_run: str | None = None
    secrets: tuple[str, ...] = ()
    git: Mapping[str, object] | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    python: str = platform.python_version()
    versions: Mapping[str, str] = field(default_factory=dict)


def start(
    plan: Plan,
    *,
    marked: bool,
    config_text: str,
    overrides: Sequence[str],
    arguments: Sequence[str],
    git: Mapping[str, object] | None,
    data: Mapping[str, str],
    resumed: Mapping[str, object] | None = None,
    in_force: Mapping[str, object] = MappingProxyType({}),
    before: Mapping[str, object] = MappingProxyType({}),
) -> Record:
    """Write the record of a run that is about to start. `before` is the record of the start before it, if there was
    one.

    Raises:
        StorageError: it cannot be written.
    """
    record = Record(
        run=plan.layout.run,
        state="running",
        config=str(plan.config.absolute()),
        config_sha256=_sha256(config_text.encode()),
        config_text=config_text,
        overrides=tuple(overrides),
        directory=str(Path.cwd()),
        retries=plan.retries,
        train_yaml=str(plan.layout.train_yaml),
        train_yaml_sha256=_sha256(plan.train_yaml.encode()),
        arguments=tuple(arguments),
        command=plan.argv,
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_started=_started(os.getpid()),
        user=getpass.getuser(),
        started=(moment := now()),
        first_started=str(before.get("first_started") or before.get("started") or moment),
        restarts=_restarts(before, moment, resumed),
        checkpoints="marked" if marked else "copied",
        output=str(plan.output) if plan.output else None,
        workers=plan.workers,
        device=plan.device,
        gpus=gpu_names(),
        tokens_per_step=plan.tokens_per_step,
        secrets=plan.secrets,
        resumed=resumed,
        in_force=dict(in_force),
        git=git,
        data=data,
        versions=versions(),
    )
    write_bytes(plan.layout.reserve, os.urandom(RESERVE))
    write(plan.layout, record)
    return record


def _restarts(
    before: Mapping[str, object], moment: str, resumed: Mapping[str, object] | None
) -> tuple[Mapping[str, object], ...]:
    """Those of the starts before, and this one with what ended the last; none for the first start."""
    if not before:
        return ()
    known = before.get("restarts")
    earlier = [item for item in known if isinstance(item, dict)] if isinstance(known, list) else []
    cause = before.get("cause") or "its launcher was gone"
    step = resumed.get("step", 0) if resumed else 0
    cause = f"interrupted by {cause}" if before.get("state") == "interrupted" else cause
    return (*earlier, {"time": moment, "cause": cause, "resumed_from": step})


def restarted(layout: Layout, record: Record, cause: str, step: int) -> Record:
    """Write that an attempt failed at `step` and another one begins."""
    again = replace(record, restarts=(*record.restarts, {"time": now(), "cause": cause, "step": step}))
    write(layout, again)
    return again


def end(layout: Layout, record: Record, state: State, exit_code: int, cause: str | None = None) -> Record:
    """Write how it ended.

    Raises:
        StorageError: it cannot be written, though the reserve was given back.
    """
    remove_tree(layout.reserve)
    ended = replace(record, state=state, ended=now(), exit_code=exit_code, cause=cause)
    write(layout, ended)
    return ended


def tokens_until(known: Mapping[str, object], step: int) -> int | None:
    """Tokens that a run was trained on up to a step, all its starts counted; None where blocks are not packed, or
    nothing is known. `known` is run.json.
    """
    each, resumed = known.get("tokens_per_step"), known.get("resumed")
    before = resumed if isinstance(resumed, Mapping) else {"step": 0, "tokens": 0}
    at, tokens = before.get("step"), before.get("tokens")
    if not isinstance(each, int) or not isinstance(at, int) or not isinstance(tokens, int) or not each:
        return None
    return tokens + (step - at) * each if step >= at else tokens * step // at


def trained(known: Mapping[str, object], step: int, epochs: object) -> dict[str, object] | None:
    """Steps, tokens trained on, and epochs, up to a step. The last step of an epoch may hold fewer tokens: they are not
    more than the epochs' own.
    """
    tokens, packed = tokens_until(known, step), known.get("tokens")
    if tokens is None or not step:
        return None
    whole = packed.get("tokens") if isinstance(packed, Mapping) else None
    if isinstance(epochs, int | float) and epochs >= 1 and isinstance(whole, int):
        tokens = min(tokens, round(epochs * whole))
    return {"steps": step, "tokens": tokens, "epochs": epochs if isinstance(epochs, int | float) else None}


def resume_command(layout: Layout) -> str:
    """What to type to have a run resumed."""
    return f"cpt resume {quote(str(layout.run_dir))}"


def read(layout: Layout) -> dict[str, object] | None:
    """What run.json holds; None where there is none. A state that says running is checked against life.

    Raises:
        NotReadyError: run.json cannot be read.
    """
    if not os.path.lexists(layout.run_json):
        return None
    try:
        known = _sound(jsontext.load(layout.run_json))
        if known["state"] == "running" and not _alive(known, layout):
            known["state"] = "lost"
    except (OSError, ValueError) as error:
        why = (error.strerror or error) if isinstance(error, OSError) else error
        place = quote(str(layout.run_json))
        hint = f"move it aside if the run is not running: mv {place} {place}.bad"
        raise NotReadyError(Problem(f"cannot read it: {why}", str(layout.run_json), hint)) from None
    return known


def _sound(known: object) -> dict[str, object]:
    """What a run.json holds, without what is of another kind than a record's.

    Raises:
        ValueError: it is no record, or of a run that is running and does not say where.
    """
    if not isinstance(known, dict) or known.get("state") not in get_args(State):
        raise ValueError("it is no record of a run")
    wrong = [key for key, kind in _KINDS.items() if not isinstance(known.get(key), kind)]
    wrong += [key for key in ("workers", "pid") if not jsontext.is_count(known.get(key, 0))]
    tokens = known.get("tokens")
    if isinstance(tokens, dict) and not (
        "end_of_text" in tokens and all(jsontext.is_count(tokens.get(key)) for key in _TOKENS)
    ):
        wrong.append("tokens")
    trained = known.get("trained_on")
    if isinstance(trained, dict) and not all(jsontext.is_count(trained.get(key)) for key in ("steps", "tokens")):
        wrong.append("trained_on")
    known = {key: value for key, value in known.items() if key not in wrong}
    if known["state"] == "running" and not {"host", "pid"} <= set(known):
        raise ValueError("it does not say where the run is running")
    return known


def _alive(known: Mapping[str, object], layout: Layout) -> bool:
    """On its own host, by the launcher's process; from another machine, by its heartbeat on the storage."""
    if known["host"] == socket.gethostname():
        return _started(int(str(known["pid"]))) == known.get("pid_started", "")
    try:
        last = layout.heartbeat.stat().st_mtime
    except OSError:
        last = layout.run_json.stat().st_mtime
    return time.time() - last < SILENT_SECONDS


def _started(pid: int) -> str:
    """When a process started, in a way that no other of the same number has (proc_pid_stat(5)); empty if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else f"{boot}:{fields[19]}"


def gpu_names() -> tuple[str, ...]:
    """NVIDIA's names of this machine's GPUs, as its driver tells them."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for path in files for line in path.read_text(errors="replace").splitlines()]
    return tuple(line.partition(":")[2].strip() for line in lines if line.startswith("Model"))


def versions() -> dict[str, str]:
    """Versions of the stack in this Python."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(layout: Layout, record: Record) -> None:
    """Replace run.json.

    Raises:
        StorageError: it cannot be written.
    """
    write_json(layout.run_json, asdict(record))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def now() -> str:
    """The time as run.json has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
