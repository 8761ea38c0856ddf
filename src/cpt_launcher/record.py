"""`run.json`: what a run is, how it was started and how it ended."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from cpt_launcher.disk import write_json
from cpt_launcher.errors import NotReadyError, Problem
from cpt_launcher.layout import Layout
from cpt_launcher.plan import Plan

State = Literal["running", "finished", "failed", "interrupted"]
PACKAGES = (
    "cpt-launcher",
    "llamafactory",
    "deepspeed",
    "ray",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
)


@dataclass(frozen=True)
class Record:
    """The content of run.json; times are ISO 8601 in UTC."""

    run: str
    state: State
    config: str
    config_sha256: str
    train_yaml: str
    train_yaml_sha256: str
    command: tuple[str, ...]
    host: str
    pid: int
    user: str
    started: str
    ended: str | None = None
    exit_code: int | None = None
    cause: str | None = None
    python: str = platform.python_version()
    versions: dict[str, str] = field(default_factory=dict)


def start(plan: Plan) -> Record:
    """Write the record of a run that is about to start."""
    record = Record(
        run=plan.layout.run,
        state="running",
        config=str(plan.config.absolute()),
        config_sha256=_sha256(plan.config.read_bytes()),
        train_yaml=str(plan.layout.train_yaml),
        train_yaml_sha256=_sha256(plan.train_yaml.encode()),
        command=plan.argv,
        host=socket.gethostname(),
        pid=os.getpid(),
        user=getpass.getuser(),
        started=_now(),
        versions=_versions(),
    )
    _write(plan.layout, record)
    return record


def end(layout: Layout, record: Record, state: State, exit_code: int, cause: str | None = None) -> None:
    """Write how it ended."""
    _write(layout, replace(record, state=state, ended=_now(), exit_code=exit_code, cause=cause))


def state_of(layout: Layout) -> State | None:
    """The state in run.json; a run that says running but whose process is gone (on this host) has failed.

    Raises:
        NotReadyError: run.json cannot be read.
    """
    if not layout.run_json.is_file():
        return None
    try:
        known = json.loads(layout.run_json.read_text(encoding="utf-8"))
        state: State = known["state"]
        gone = known["host"] == socket.gethostname() and not Path(f"/proc/{int(known['pid'])}").exists()
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "move it aside if the run is not going on"
        raise NotReadyError(Problem(f"cannot read it: {error}", str(layout.run_json), hint)) from None
    return "failed" if state == "running" and gone else state


def _versions() -> dict[str, str]:
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


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
