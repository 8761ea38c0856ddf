from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cpt_launcher.layout import Layout
from cpt_launcher.runs import plots
from cpt_launcher.runs.history import Run


def run(steps: int) -> Run:
    points = tuple({"step": at * 5, "loss": 7.5 - 0.03 * at} for at in range(1, steps + 1))
    evals = tuple({"step": at * 50, "loss": 7.6 - 0.3 * at} for at in range(3))
    return Run(Layout(Path("/s"), "mine"), {"state": "finished"}, points, "", None, evals, (60,))


def test_the_picture() -> None:
    drawn = plots.png(run(30))
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")
    assert plots.png(run(0)) is None


def test_in_the_terminal() -> None:
    lines = plots.text(run(30), 80).splitlines()
    assert len(lines) == 15
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert "step" in lines[-1]
    assert "loss (nats per token)" in lines[-1]
    assert "held out" in "".join(lines)
    assert plots.text(run(1), 80) == ""


def twenty() -> Run:
    steps = tuple({"step": at, "loss": 3.0 - at / 20} for at in range(1, 21))
    return replace(run(0), steps=steps, evals=(), restarts=())


def test_steps_are_whole_numbers() -> None:
    (ticks,) = [line.split() for line in plots.text(twenty(), 80).splitlines()[-2:-1]]
    assert ticks == ["1", "6", "10", "15", "20"]


def test_the_ticks_of_the_picture_are_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    inner = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **named: (drawn.append(self), inner(self, *given, **named))
    )
    assert plots.png(twenty()) is not None
    ticks = [float(tick) for tick in drawn[0].axes[0].get_xticks()]
    assert len(ticks) > 3
    assert [tick for tick in ticks if tick != round(tick)] == []


def test_a_loss_that_is_no_number_is_not_drawn() -> None:
    nan, inf = float("nan"), float("inf")
    whole = run(30)
    lost = replace(whole, evals=({"step": 0, "loss": nan},))
    assert plots.text(lost, 80) != ""
    assert plots.png(lost) is not None
    for end in (nan, inf):
        longer = replace(whole, steps=(*whole.steps, {"step": 155, "loss": end}), evals=())
        assert plots.text(longer, 80) == plots.text(replace(whole, evals=()), 80)
    assert plots.png(replace(whole, steps=({"step": 1, "loss": nan},))) is None
