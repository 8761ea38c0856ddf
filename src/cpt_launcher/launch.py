"""Starting the training process, passing its output on, and leaving nothing behind."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

# Seconds from the first signal until the next, stronger one.
GRACE_SECONDS = 20.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Exit:
    """How the process ended: its exit code, and the signal that the user sent, if any."""

    code: int
    interrupted_by: signal.Signals | None


def run(argv: Sequence[str], env: Mapping[str, str], sink: Callable[[str], None]) -> Exit:
    """Run `argv` in a process group of its own; every line of its output goes to `sink`.

    SIGINT, SIGTERM and SIGHUP go on to the whole group, with SIGTERM and then SIGKILL behind them if it lingers
    (a second signal skips the waiting). Afterwards every descendant that is still there is ended: Ray's daemons
    leave the group and would hold GPUs.
    """
    _adopt_orphans()
    mine = _children()
    with (
        _Forwarder() as forwarder,
        subprocess.Popen(
            argv,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        forwarder.attach(process.pid)
        pump = threading.Thread(target=_pump, args=(process, sink), daemon=True)
        pump.start()
        while process.poll() is None:
            forwarder.escalate()
            time.sleep(0.05)
        _end_leftovers(mine)
        pump.join(timeout=5)
    return Exit(process.returncode, forwarder.received)


class _Forwarder:
    """Signal handlers that pass signals on to the child's process group, ever more firmly."""

    def __init__(self) -> None:
        self.group: int | None = None
        self.received: signal.Signals | None = None
        self._count = 0
        self._since = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> _Forwarder:
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        self._since = self._since or time.monotonic()
        self._count += 1
        self._send(signal.Signals(number) if self._count == 1 else signal.SIGKILL)

    def attach(self, group: int) -> None:
        """Forward to this group from now on, first what came before it was there."""
        self.group = group
        if self.received:
            self._send(self.received)

    def escalate(self) -> None:
        waited = time.monotonic() - self._since if self.received else 0.0
        if waited > 2 * GRACE_SECONDS:
            self._send(signal.SIGKILL)
        elif waited > GRACE_SECONDS:
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        if self.group is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.group, number)


def _pump(process: subprocess.Popen[bytes], sink: Callable[[str], None]) -> None:
    """Cut the output into lines; a carriage return (a progress bar) ends one too."""
    assert process.stdout is not None
    decoder, rest = codecs.getincrementaldecoder("utf-8")(errors="replace"), ""
    while chunk := os.read(process.stdout.fileno(), 65536):
        *lines, rest = (rest + decoder.decode(chunk)).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            sink(line)
    if rest:
        sink(rest)


def _adopt_orphans() -> None:
    """Have orphaned descendants become children of this process (prctl(2)), so that none gets out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _parents() -> dict[int, int]:
    """The parent of every process, read from /proc (proc_pid_stat(5)); empty where there is none."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found[int(stat.parent.name)] = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
    return found


def _children() -> set[int]:
    return {pid for pid, parent in _parents().items() if parent == os.getpid()}


def _end_leftovers(mine: set[int]) -> None:
    """End what the run left: a moment to go by itself, then SIGTERM, then SIGKILL."""
    for number, seconds in ((None, 3.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        if number is not None:
            for pid in _leftovers(mine):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        while time.monotonic() < deadline:
            if not _leftovers(mine):
                return
            time.sleep(0.05)


def _leftovers(mine: set[int]) -> set[int]:
    """Living descendants, those reparented included; the dead among our own children are reaped on the way."""
    parents = _parents()
    found = {pid for pid, parent in parents.items() if parent == os.getpid() and pid not in mine}
    found = {pid for pid in found if not _reaped(pid)}
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | children, bool(children)
    return found


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
