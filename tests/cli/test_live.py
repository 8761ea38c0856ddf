"""What a terminal shows of a run while it goes on."""

from __future__ import annotations

import time

import pytest
from rich.console import Console

from cpt_launcher.cli import live
from cpt_launcher.cli.live import _View
from cpt_launcher.runs.events import STOPPING, Bar, Event, Progress

START: Event = {"event": "phase", "phase": "starting Ray"}


def drawn(view: _View) -> list[str]:
    console = Console(width=120, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(view.render())
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def view_of(**state: object) -> _View:
    view = _View()
    view.event(START, Progress(2, 0, **state))  # type: ignore[arg-type]
    return view


def test_nothing_before_the_training_process() -> None:
    assert drawn(_View()) == []


@pytest.mark.parametrize("phase", ["starting Ray", "loading the model", "evaluating the base model", STOPPING])
def test_without_a_total_there_is_no_bar(phase: str) -> None:
    assert drawn(view_of(phase=phase, total=40)) in ([f"{phase}  0:00:00"], [f"{phase}  0:00:01"])


def test_steps() -> None:
    (line,) = drawn(view_of(phase="training", step=20, total=40))
    assert line.startswith("training \u2501\u2501\u2501")
    assert " 20/40 " in line


def test_batches_of_an_evaluation() -> None:
    view = view_of(phase="evaluating", step=20, total=40, bar=Bar(19, 41, 72.0, 83.9, time.time()))
    view.event(
        {"event": "step", "step": 20, "loss": 2.0, "lr": 1e-3, "seconds_left": 65.0}, view.state or Progress(1, 0)
    )
    first, second = drawn(view)
    assert first.startswith("evaluating \u2501\u2501\u2501")
    assert " 19/41 0:01:23 left (0:00:0" in first
    assert second == "loss 2.0000  lr 1.00e-03"
    view.event({"event": "end"}, Progress(1, 0))
    assert drawn(view) == []
    view.event(START, Progress(1, 0))
    assert len(drawn(view)) == 1  # nothing of the try before


def test_elsewhere_a_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    with live.show(raw=False) as show:
        show.event(START, Progress(1, 0))
        evaluating: Event = {"event": "phase", "phase": "evaluating", "done": 19, "of": 41, "seconds_left": 83.2}
        show.event(evaluating, Progress(1, 0))
    assert capsys.readouterr().err == "cpt: starting Ray\ncpt: evaluating 19/41, 0:01:23 left\n"
