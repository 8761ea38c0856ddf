"""A run in progress: a live view on a terminal, a line per logged step elsewhere, or the raw output."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cpt_launcher.cli import show as terminal
from cpt_launcher.launch.attempt import Show
from cpt_launcher.runs import events
from cpt_launcher.runs.events import Event, Progress

if TYPE_CHECKING:
    from rich.console import RenderableType


@contextlib.contextmanager
def show(*, raw: bool) -> Iterator[Show]:
    """How a run is shown: `raw` as LLaMA-Factory prints it, else live on a terminal, else a line per event."""
    if raw:
        yield Show(terminal.note, terminal.staged, terminal.say, lambda *_: None)
    elif not sys.stderr.isatty():
        yield Show(terminal.note, terminal.staged, lambda _: None, _line)
    else:
        with _live() as event:
            yield Show(terminal.note, terminal.staged, lambda _: None, event)


def _line(event: Event, _: Progress) -> None:
    if event["event"] in ("phase", "step", "eval", "checkpoint"):
        terminal.note(events.describe(event))


@contextlib.contextmanager
def _live() -> Iterator[Callable[[Event, Progress], None]]:
    """Two lines at the bottom of the terminal: phase, bar, step and time left; loss, rate and the last checkpoint."""
    from rich.console import Console
    from rich.live import Live

    view = _View()
    with Live(get_renderable=view.render, console=Console(stderr=True), refresh_per_second=4, transient=True):
        yield view.event


class _View:
    def __init__(self) -> None:
        self.began = time.monotonic()
        self.state: Progress | None = None
        self.figures = ""
        self.saved = self.held_out = ""

    def event(self, event: Event, state: Progress) -> None:
        if self.state is None:
            self.began = time.monotonic()
        self.state = state
        if event["event"] == "step":
            self.figures = events.figures({**event, "seconds_left": None})
        elif event["event"] == "eval":
            self.held_out = f"  held out {event['loss']:.4f}"
        elif event["event"] == "checkpoint":
            self.saved = f"  saved {event['step']}"
        elif event["event"] == "end":
            self.state, self.figures = None, ""

    def render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self.state is None:
            return Text("")
        since = events.duration(time.monotonic() - self.began)
        known = events.how_far(self.state, time.time())
        below = Text(f"{self.figures}{self.held_out}{self.saved}")
        if known is None:
            return Group(Text(f"{self.state.phase}  {since}"), below)
        row = Table.grid(padding=(0, 1))
        left = f"{events.duration(known.left)} left" if known.left is not None else ""
        bar = ProgressBar(total=known.total, completed=known.done, width=30)
        row.add_row(Text(self.state.phase), bar, f"{known.done}/{known.total}", left, f"({since})")
        return Group(row, below)
