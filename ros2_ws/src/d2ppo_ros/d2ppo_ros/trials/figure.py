"""The results as a picture: success of each policy, and beside it the paired differences."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2ppo_core.report_figures import COLOURS, INK, MUTED, label, png
from d2ppo_core.statistics import Interval

from .results import Results


def draw(results: Results) -> bytes:
    """As PNG."""
    lines = max(len(results.rows), len(results.differences), 1)
    return png(lambda figure: _fill(figure, results), (9.0 if results.differences else 5.5, 1.5 + 0.42 * lines))


def _fill(figure: Figure, results: Results) -> None:
    panels = figure.subplots(1, 2 if results.differences else 1, squeeze=False)[0]
    rates = [(row.name, row.rate, f"{row.successes}/{row.trials}") for row in results.rows if row.rate]
    _intervals(panels[0], rates)
    panels[0].set_xlim(-0.02, 1.02)
    panels[0].set_title("Success")
    panels[0].set_xlabel("success rate, Wilson's 95 % interval")
    if results.differences:
        pairs = [
            (f"{pair.second} − {pair.first}", pair.interval, f"{pair.interval.value:+.2f}")
            for pair in results.differences
        ]
        _intervals(panels[1], pairs)
        panels[1].axvline(0.0, color=MUTED, linewidth=1)
        panels[1].set_xlim(-1.04, 1.04)
        panels[1].set_title("Difference, paired by start state")
        panels[1].set_xlabel("difference of success rates, 95 % interval")


def _intervals(ax: Axes, rows: Sequence[tuple[str, Interval, str]]) -> None:
    """One row for each: its interval, its value as a point, and a text above it."""
    for number, (_, interval, text) in enumerate(rows):
        colour = COLOURS[number % len(COLOURS)]
        ax.plot([interval.low, interval.high], [number, number], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot([interval.value], [number], "o", color=colour, markersize=7)
        ax.annotate(text, (interval.value, number), (0, 7), textcoords="offset points", ha="center", color=INK)
    ax.set_yticks(range(len(rows)), [label(name, 30) for name, _, _ in rows], color=INK)
    ax.set_ylim(len(rows) - 0.4, -0.7)
    ax.grid(axis="y", visible=False)
