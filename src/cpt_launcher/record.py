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
from typing import Literal, get_args

from cpt_launcher import jsontext
from cpt_launcher.disk import write_json
from cpt_launcher.errors import NotReadyError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.plan import Plan

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
    **dict.fromkeys(("host", "pid_started", "user", "started", "checkpoints", "device"), (str, type(None))),
    **dict.fromkeys(("ended", "cause", "output", "mlflow_run"), (str, type(None))),
    **dict.fromkeys(("tokens", "data", "versions"), (dict, type(None))),
    **dict.fromkeys(("restarts", "gpus"), (list, type(None))),
}
_TOKENS = ("documents", "tokens_in", "tokens", "blocks", "lost")


@dataclass(frozen=True)
class Record:
    """The content of run.json: what it takes to do the run again. Times are ISO 8601 in UTC.

    `arguments` is the user's command line, `command` the training process's. `data` maps staged files to their sha256.
    `checkpoints`: `marked` where the workers mark complete ones, `copied` where Ray copies them its own way. `tokens`:
    what came of the documents, where the workers counted. `secrets`: names alone.
    """

    run: str
    state: State
    config: str
    config_sha256: str
    config_text: str
    train_yaml: str
    train_yaml_sha256: str
    arguments: tuple[str, ...]
    command: tuple[str, ...]
    host: str
    pid: int
    pid_started: str
    user: str
    started: str
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
    tokens: Mapping[str, object] | None = None
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
    arguments: Sequence[str],
    git: Mapping[str, object] | None,
    data: Mapping[str, str],
    mlflow_run: str | None = None,
) -> Record:
    """Write the record of a run that is about to start."""
    config = plan.config.read_bytes()
    record = Record(
        run=plan.layout.run,
        state="running",
        config=str(plan.config.absolute()),
        config_sha256=_sha256(config),
        config_text=config.decode("utf-8", "replace"),
        train_yaml=str(plan.layout.train_yaml),
        train_yaml_sha256=_sha256(plan.train_yaml.encode()),
        arguments=tuple(arguments),
        command=plan.argv,
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_started=_started(os.getpid()),
        user=getpass.getuser(),
        started=now(),
        checkpoints="marked" if marked else "copied",
        output=str(plan.output) if plan.output else None,
        workers=plan.workers,
        device=plan.device,
        gpus=gpu_names(),
        tokens_per_step=plan.tokens_per_step,
        mlflow_run=mlflow_run,
        secrets=plan.secrets,
        git=git,
        data=data,
        versions=versions(),
    )
    _write(plan.layout, record)
    return record


def restarted(layout: Layout, record: Record, cause: str, step: int) -> Record:
    """Write that an attempt failed at `step` and another one begins."""
    again = replace(record, restarts=(*record.restarts, {"time": now(), "cause": cause, "step": step}))
    _write(layout, again)
    return again


def end(
    layout: Layout,
    record: Record,
    state: State,
    exit_code: int,
    cause: str | None = None,
    tokens: Mapping[str, object] | None = None,
) -> None:
    """Write how it ended."""
    _write(layout, replace(record, state=state, ended=now(), exit_code=exit_code, cause=cause, tokens=tokens))


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
        hint = f"move it aside if the run is not going on: mv {place} {place}.bad"
        raise NotReadyError(Problem(f"cannot read it: {why}", str(layout.run_json), hint)) from None
    return known


def _sound(known: object) -> dict[str, object]:
    """What a run.json holds, without what is of another kind than a record's.

    Raises:
        ValueError: it is no record, or of a run that is going on and does not say where.
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
    known = {key: value for key, value in known.items() if key not in wrong}
    if known["state"] == "running" and not {"host", "pid"} <= set(known):
        raise ValueError("it does not say where the run is going on")
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


def _write(layout: Layout, record: Record) -> None:
    write_json(layout.run_json, asdict(record))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def now() -> str:
    """The time as run.json has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
