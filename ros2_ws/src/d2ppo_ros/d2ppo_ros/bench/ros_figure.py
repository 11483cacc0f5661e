"""The figure of `d2ppo bench ros`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from d2ppo_core.files import atomic_path
from d2ppo_core.report_figures import COLOURS, GRID, INK, MUTED, STYLES, png

MISS = 10.0  # ms
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # of logarithmic axes


def draw(report: dict[str, Any], out: Path) -> None:
    """Distributions of hops and sums, lateness over time, what end to end is made of, CPU time; as a PNG."""

    def panels(figure: Figure) -> None:
        (hops, loops), (parts, cpu) = figure.subplots(2, 2, width_ratios=(1.15, 1))
        _hops(hops, report)
        _lateness(loops, report)
        _parts(parts, report)
        _cpu(cpu, report)

    picture = png(panels, (12.0, 8.0))
    with atomic_path(out) as path:
        path.write_bytes(picture)


def _hops(ax: Axes, report: dict[str, Any]) -> None:
    from .ros import CURVE

    curves = report["curves"]["spans"]
    for number, name in enumerate(report["chain"]):
        style = STYLES[number // len(COLOURS)]
        ax.plot(curves[name], CURVE, label=name, color=COLOURS[number % len(COLOURS)], linestyle=style, linewidth=1.2)
    ax.plot(curves["total"], CURVE, label="sum of the hops", color=INK, linewidth=2.4)
    asked = report["asked"]
    ax.plot([asked["median"], asked["p99"]], [0.5, 0.99], "x", color=INK, markersize=8, label="asked of the sum")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(PLAIN)
    ax.set_xlim(left=0.02)
    ax.set_xlabel("ms")
    ax.set_ylabel("share of the chunks below")
    ax.set_title("hops from what is seen to the command")
    ax.legend(loc="lower right", fontsize=7)


def _lateness(ax: Axes, report: dict[str, Any]) -> None:
    for number, (name, rows) in enumerate(report["curves"]["lateness"].items()):
        seconds, late = np.array(rows).T
        ax.plot(seconds, np.maximum(late, 0.01), ".", markersize=4, color=COLOURS[number], label=name)
    ax.axhline(MISS, color=MUTED, linestyle="--", linewidth=1)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("s")
    ax.set_ylabel("ms")
    ax.set_title("latest tick of each second (dashed: a miss)")
    ax.legend(loc="lower right", ncols=3, fontsize=7)


def _parts(ax: Axes, report: dict[str, Any]) -> None:
    """Median and 99 % of the sums."""
    from .ros import CURVE

    names = {"total": "sum of the hops", "asked": "until the executor asks", "inference": "network",
             "due": "until the step's tick", "end to end": "end to end"}  # fmt: skip
    for number, (name, heading) in enumerate(names.items()):
        values = report["curves"]["spans"][name]
        colour = INK if name == "end to end" else COLOURS[number]
        ax.plot(values, CURVE, color=colour, linewidth=2.2 if name == "end to end" else 1.4, label=heading)
    ax.set_xlabel("ms")
    ax.set_xlim(0, report["spans"]["end to end"]["p99"] * 1.2)
    ax.set_ylabel("share of the chunks below")
    ax.set_title("end to end, and what it is made of")
    ax.legend(loc="lower right", fontsize=7)


def _cpu(ax: Axes, report: dict[str, Any]) -> None:
    shares = {**report["cpu"], "all else here": report["others"]}
    colours = [COLOURS[0]] * len(report["cpu"]) + [GRID]
    bars = ax.barh(list(shares), [100 * share for share in shares.values()], color=colours)
    ax.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8)
    ax.margins(x=0.12)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("% of one core")
    ax.set_title("CPU time")
