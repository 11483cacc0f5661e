"""The figure of `d2ppo bench chunks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2ppo_core.files import atomic_path
from d2ppo_core.report_figures import COLOURS, MUTED, png

from .borders import QUANTITIES

SHOWN = ("goal_velocity", "measured_velocity")
SPREAD = 0.8  # share of a latency's place that the modes fill


def draw(report: dict[str, Any], out: Path) -> None:
    """Success, and two of the quantities at borders over those inside chunks, as a PNG."""

    def panels(figure: Figure) -> None:
        left, *others = figure.subplots(1, 1 + len(SHOWN))
        _success(left, report)
        for ax, name in zip(others, SHOWN, strict=True):
            _change(ax, report, name)
        left.plot([], [], "o", color=MUTED, label="inside its chunks")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)

    picture = png(panels, (11.0, 3.8))
    with atomic_path(out) as path:
        path.write_bytes(picture)


def _places(report: dict[str, Any], ax: Axes) -> list[tuple[str, str, np.ndarray, list[dict[str, Any]]]]:
    """Of each mode: name, colour, places (L,) on the axis, and rows of its L latencies; labels the axis."""
    latencies = sorted({row["latency"] for row in report["rows"]})
    modes = list(dict.fromkeys(row["mode"] for row in report["rows"]))
    ax.set_xticks(range(len(latencies)), [f"{latency * 1000:.0f} ms" for latency in latencies])
    ax.set_xlabel("inference latency")
    ax.grid(axis="x", visible=False)
    shift = (np.arange(len(modes)) - (len(modes) - 1) / 2) * SPREAD / len(modes)
    found = []
    for number, mode in enumerate(modes):
        rows = sorted((row for row in report["rows"] if row["mode"] == mode), key=lambda row: row["latency"])
        places = np.array([latencies.index(row["latency"]) for row in rows]) + shift[number]
        found.append((mode, COLOURS[number], places, rows))
    return found


def _success(ax: Axes, report: dict[str, Any]) -> None:
    for mode, colour, places, rows in _places(report, ax):
        value, low, high = (np.array([row["success"][key] for row in rows]) for key in ("value", "low", "high"))
        ax.errorbar(places, value, [value - low, high - value], fmt="o", color=colour, capsize=3, label=mode)
    ax.set_ylim(-0.02, 1.02)
    ax.set_title(f"success ({report['episodes']} episodes, 95 %)")


def _change(ax: Axes, report: dict[str, Any], name: str) -> None:
    """Median (dot) to 95 % (line) at borders; the same inside chunks in grey beside it."""
    heading, unit = QUANTITIES[name]
    for _, colour, places, rows in _places(report, ax):
        for part, shift, ink in (("inside", -0.05, MUTED), ("border", 0.05, colour)):
            found = [row["changes"][name][part] for row in rows]
            x, median, high = (
                np.array(column) for column in zip(*((place + shift, f["median"], f["p95"]) if f else (np.nan,) * 3
                                                     for place, f in zip(places, found, strict=True)), strict=True)
            )
            ax.vlines(x, median, high, color=ink, linewidth=2.5)
            ax.plot(x, median, "o", color=ink, markersize=5)
    ax.set_ylim(bottom=0)
    ax.set_title(f"change of {heading} [{unit}]")
