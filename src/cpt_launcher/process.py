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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cpt_launcher import child
from cpt_launcher.errors import InterruptedRunError, Problem

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST = 100_000  # characters of a line; the launcher keeps the last 2,000 lines in memory
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


Sink = Callable[[str], None]


def environment() -> dict[str, str]:
    """This process's own variables."""
    return dict(os.environ)


@dataclass(frozen=True)
class Exit:
    """How the process ended: its exit code, and the signal that the user sent, if any."""

    code: int
    interrupted_by: signal.Signals | None


def run(
    argv: Sequence[str],
    env: Mapping[str, str],
    sink: Callable[[str], None],
    tick: Callable[[], None] = lambda: None,
    *,
    given: str = "",
    folder: Path | None = None,
    stopping: Callable[[], None] = lambda: None,
) -> Exit:
    """Run `argv` under a guard (see `guard`); every line of its output goes to `sink`, and `tick` is called twenty
    times a second. SIGINT, SIGTERM and SIGHUP are passed on; `stopping` is called at the first one. `given` is what it
    reads on stdin, `folder` its working directory where that is not this process's own.
    """
    _adopt_orphans()
    mine, said = _children(), False
    with (
        _Signals() as signals,
        subprocess.Popen(
            child.argv("cpt_launcher.guard", *argv),
            env=child.env(env),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        _give(process, given)
        pump = threading.Thread(target=_pump, args=(process, sink), daemon=True)
        pump.start()
        while process.poll() is None:
            signals.forward(process.send_signal)
            if signals.first and not said:
                said = True
                stopping()
            tick()
            time.sleep(0.05)
        _end_leftovers(mine)
        pump.join(timeout=5)
        tick()
    return Exit(process.returncode, signals.first)


def _give(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(text.encode())
        process.stdin.close()


def guard(argv: Sequence[str]) -> int:
    """Run `argv` in a process group of its own and return its exit code, negative for a signal. Its output is this
    process's own.

    A signal is passed on to the whole group, with SIGTERM and then SIGKILL behind it if it lingers (a second signal
    skips the waiting); SIGKILL comes at once when the launcher is gone, however it ended. Afterwards every descendant
    that is still there is ended: Ray's daemons leave the group and would hold GPUs.
    """
    launcher = os.getppid()
    _adopt_orphans()
    with _Signals() as signals, subprocess.Popen(argv, start_new_session=True) as process:

        def send(number: int) -> None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)

        while process.poll() is None:
            signals.forward(lambda number: send(number if signals.count == 1 else signal.SIGKILL))
            waited = signals.waited()
            if waited > 2 * grace() or os.getppid() != launcher:
                send(signal.SIGKILL)
            elif waited > grace():
                send(signal.SIGTERM)
            time.sleep(0.05)
        _end_leftovers(set())
    return process.returncode


def die_like(code: int) -> NoReturn:
    """End this process with an exit code, or by the signal that a negative one stands for."""
    if code < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def grace() -> float:
    """Seconds from the first signal until the next, stronger one."""
    return float(os.environ.get("CPT_GRACE_SECONDS", "20"))


def pause(seconds: float) -> signal.Signals | None:
    """Wait; a signal that comes meanwhile ends the wait and is returned."""
    deadline = time.monotonic() + seconds
    with _Signals() as signals:
        while signals.first is None and time.monotonic() < deadline:
            time.sleep(0.05)
    return signals.first


def signal_name(number: int) -> str:
    """`SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is running as Ctrl-C does, by KeyboardInterrupt."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible(next_step: str = "the same command resumes where it was") -> Iterator[None]:
    """An interruption that nothing else takes care of is one of the contract's endings.

    Raises:
        InterruptedRunError: a signal came.
    """
    try:
        with signals_interrupt():
            yield
    except KeyboardInterrupt:
        raise InterruptedRunError(Problem("interrupted", "", next_step)) from None


def ask(*argv: str, env: Mapping[str, str] | None = None) -> str | None:
    """The output of a short command in the working directory; None where it fails or is not there. `env` is added."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            argv,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout.strip()
    return None


class _Signals:
    """Handlers that note signals, to be passed on from the main loop."""

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.count = 0
        self._pending: list[int] = []
        self._since = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.first = self.first or signal.Signals(number)
        self._since = self._since or time.monotonic()
        self.count += 1
        self._pending.append(number)

    def forward(self, send: Callable[[int], None]) -> None:
        """Pass on what came since."""
        while self._pending:
            send(self._pending.pop(0))

    def waited(self) -> float:
        """Seconds since the first signal, 0 without one."""
        return time.monotonic() - self._since if self.first else 0.0


def _pump(process: subprocess.Popen[bytes], sink: Callable[[str], None]) -> None:
    """Cut the output into lines; a carriage return (a progress bar) ends one too."""
    assert process.stdout is not None
    lines = _Lines(sink)
    while chunk := os.read(process.stdout.fileno(), 65536):
        lines.take(chunk)
    lines.end()


class _Lines:
    """Puts lines together from what comes in pieces. One without an end is cut at `LONGEST` characters."""

    def __init__(self, sink: Callable[[str], None]) -> None:
        self._sink = sink
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pieces: list[str] = []  # of the line that has not ended yet
        self._size = 0
        self._after_return = False

    def take(self, chunk: bytes) -> None:
        text = self._decoder.decode(chunk)
        if not text:
            return
        if self._after_return:  # that line has ended already
            text = text.removeprefix("\n")
        self._after_return = text.endswith("\r")
        first, *others = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._add(first)
        for line in others:
            self._finish()
            self._add(line)

    def end(self) -> None:
        self._add(self._decoder.decode(b"", final=True))
        if self._pieces:
            self._finish()

    def _add(self, piece: str) -> None:
        while self._size + len(piece) > LONGEST:
            cut = LONGEST - self._size
            self._pieces.append(piece[:cut])
            self._finish()
            piece = piece[cut:]
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)

    def _finish(self) -> None:
        self._sink("".join(self._pieces))
        self._pieces, self._size = [], 0


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
    for number, seconds in ((None, min(3.0, grace())), (signal.SIGTERM, min(5.0, grace())), (signal.SIGKILL, 5.0)):
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
