"""The loss over a run's whole life, as a picture and in the terminal."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpt_launcher.runs.history import Run


def png(run: Run) -> bytes | None:
    """Training and held-out loss over steps, restarts marked; None where nothing was logged.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps, losses = _points(run.steps)
    if not steps:
        return None
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, label="training", linewidth=1.2)
    if (evals := _points(run.evals))[0]:
        axes.plot(*evals, label="held out", marker="o", markersize=4, linewidth=1.2)
    for number, step in enumerate(run.restarts):
        axes.axvline(step, color="grey", linestyle=":", linewidth=1, label="restart" if number == 0 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(run.layout.run)
    axes.grid(alpha=0.3)
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def text(run: Run, width: int, height: int = 15) -> str:
    """The same in characters; empty where there is too little to draw.

    Raises:
        ImportError: plotext is not installed.
    """
    import plotext

    steps, losses = _points(run.steps)
    if len(steps) < 2:
        return ""
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.plot(steps, losses, label="training")
    if (evals := _points(run.evals))[0]:
        plotext.scatter(*evals, label="held out", marker="o")
    for step in run.restarts:
        plotext.vline(step)
    whole = sorted({round(steps[0] + (steps[-1] - steps[0]) * part / 4) for part in range(5)})
    plotext.xticks(whole, [str(step) for step in whole])
    plotext.xlabel("step")
    plotext.ylabel("loss (nats per token)")
    drawn: str = plotext.uncolorize(plotext.build())
    return drawn.rstrip("\n")


def _points(events: tuple[dict[str, object], ...]) -> tuple[list[float], list[float]]:
    """Steps and losses; what is not finite cannot be drawn."""
    losses = [(float(str(event["step"])), float(str(event["loss"]))) for event in events]
    drawn = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    return [step for step, _ in drawn], [loss for _, loss in drawn]
