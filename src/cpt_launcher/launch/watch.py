"""Follows one attempt of a run: its log, its events, its heartbeat."""

from __future__ import annotations

import collections
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import IO

from cpt_launcher import disk
from cpt_launcher.errors import StorageError
from cpt_launcher.explain import rank_of
from cpt_launcher.plan.plan import Plan
from cpt_launcher.runs import checkpoints
from cpt_launcher.runs.events import STOPPING, Event, Progress
from cpt_launcher.secrets import redact

TAIL_LINES = 4000
ROWS_SECONDS, CHECKPOINTS_SECONDS, HEARTBEAT_SECONDS = 0.2, 2.0, 10.0


class Watch:
    """Takes lines from one thread and ticks from another. A storage that takes no more (a full disk) does not stop it:
    a reader that stopped would stop the training.
    """

    def __init__(
        self,
        plan: Plan,
        hidden: Mapping[str, str],
        output: Callable[[str], None],
        event: Callable[[Event, Progress], None],
    ) -> None:
        self.plan = plan
        self.progress = Progress(plan.workers, plan.tokens_per_step, plan.train)
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self.ranks: dict[int, int] = {}
        self.unwritten = 0
        self._hidden, self._output, self._event = hidden, output, event
        self._lock = threading.Lock()
        self._due = dict.fromkeys(("rows", "checkpoints", "heartbeat"), 0.0)
        self._rows = plan.output / "trainer_log.jsonl" if plan.output else None
        self._at = self._rows.stat().st_size if self._rows and self._rows.is_file() else 0
        self._rest = b""
        self._seen = checkpoints.markers(plan.output) if plan.output else {}
        self._log: IO[bytes] | None = None
        self._events: IO[bytes] | None = None

    @contextlib.contextmanager
    def files(self) -> Iterator[None]:
        """Holds log and events open.

        Raises:
            StorageError: they cannot be opened.
        """
        layout = self.plan.layout
        with disk.append_to(layout.train_log) as self._log, disk.append_to(layout.events) as self._events:
            self._write(self._log, f"cpt: started {datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC")
            yield

    def line(self, text: str) -> None:
        """A line of the training process."""
        clean = redact(text, self._hidden)
        self.tail.append(clean)
        if (found := rank_of(clean)) is not None:
            self.ranks[found[0]] = found[1]
        with self._lock:
            self._write(self._log, clean)
            self._emit(self.progress.line(clean, time.time()))
        self._output(clean)

    def tick(self) -> None:
        """Look at what the run has written since."""
        now = time.monotonic()
        with self._lock:
            if self._is_due("rows", now, ROWS_SECONDS):
                for row in self._new_rows():
                    self._emit(self.progress.row(row, time.time()))
            if self._is_due("checkpoints", now, CHECKPOINTS_SECONDS):
                self._new_checkpoints()
            if self._is_due("heartbeat", now, HEARTBEAT_SECONDS):
                with contextlib.suppress(StorageError):
                    disk.touch(self.plan.layout.heartbeat)

    def emit(self, event: Event) -> None:
        """Record and show an event of the launcher's own."""
        with self._lock:
            self._emit(event)

    def stopping(self) -> None:
        """A signal came: say so at once, the workers take their time."""
        with self._lock:
            self.progress.phase = STOPPING
            self._emit({"event": "phase", "time": time.time(), "phase": STOPPING})

    def finish(self) -> None:
        """A last look, whatever is due."""
        self._due = dict.fromkeys(self._due, 0.0)
        self.tick()

    def _is_due(self, name: str, now: float, every: float) -> bool:
        due = now >= self._due[name]
        if due:
            self._due[name] = now + every
        return due

    def _new_rows(self) -> list[str]:
        if self._rows is None or not self._rows.is_file():
            return []
        with contextlib.suppress(OSError), self._rows.open("rb") as file:
            file.seek(self._at)
            data = file.read()
            self._at += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            return [line.decode("utf-8", "replace") for line in lines]
        return []

    def _new_checkpoints(self) -> None:
        """Those whose markers are new; upstream's own checkpoints are known only at the end. One whose files are not as
        the marker says is looked at again: a network file system may show them later.
        """
        if self.plan.output is None:
            return
        for path, marker in checkpoints.markers(self.plan.output).items():
            if self._seen.get(path) == marker or not (item := checkpoints.read(path, marked=True)).complete:
                continue
            self._seen[path] = marker
            saved: Event = {"event": "checkpoint", "time": time.time(), "step": item.step}
            self._emit({**saved, "bytes": item.size, "path": str(item.path), "loss": item.loss})

    def _emit(self, event: Event | None) -> None:
        if event is not None:
            self._write(self._events, json.dumps(event))
            self._event(event, self.progress)

    def _write(self, file: IO[bytes] | None, line: str) -> None:
        try:
            if file is not None:
                file.write(line.encode("utf-8", "replace") + b"\n")
        except OSError:
            self.unwritten += 1
