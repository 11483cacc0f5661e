"""The figures of a study's report. Colours and style are the report's; every one is drawn for the page and as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..dispersive import LAYERS, VARIANTS
from ..report_figures import COLOURS, INK, MUTED, Draw, label
from .statistics import line_with_band
from .table import CellResult, Comparison, Row

NAMES = {"pretrained": "pre-trained", "finetuned": "fine-tuned"}


def draw_success(results: Sequence[CellResult]) -> Draw:
    """One task: bar and mark of each cell, a dot for each training seed."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for n, cell in enumerate(results):
            _rate(ax, n, cell)
        _rows(ax, [_cell_name(c.cell, c.policy) for c in results])
        ax.set_xlim(-0.02, 1.02)
        ax.set_title(results[0].task)
        ax.set_xlabel("success rate, with Wilson's 95 % interval over all episodes; dots: training seeds")

    return draw


def _rate(ax: Axes, n: int, cell: CellResult) -> None:
    rate, colour = cell.rate, COLOURS[1] if cell.first["mode"] == "off" else COLOURS[0]
    each = [row["successes"] / row["episodes"] for row in cell.rows]
    ax.plot(each, np.full(len(each), n + 0.27), "o", color=MUTED, markersize=2.8, alpha=0.75)
    ax.plot([rate.low, rate.high], [n, n], color=colour, linewidth=3, solid_capstyle="butt")
    ax.plot([rate.value], [n], "s" if cell.first["mode"] == "off" else "o", color=colour, markersize=6.5)


def _rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), [label(name, 44) for name in names], color=INK)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def _cell_name(cell: str, policy: str) -> str:
    return cell if policy == "pretrained" else f"{cell}, {NAMES[policy]}"


def draw_differences(results: Sequence[Comparison]) -> Draw:
    """One task: differences against no dispersion, with Student's interval; filled marks: primary."""

    def draw(figure: Figure) -> None:
        ax, reach = figure.subplots(), _reach(results)
        for n, c in enumerate(results):
            fill = COLOURS[0] if c.family == "primary" else "white"
            ax.plot(c.differences, np.full(len(c.differences), n + 0.27), "o", color=MUTED, markersize=2.8)
            if len(c.seeds) > 1:
                ends = np.clip([c.by_seed.low, c.by_seed.high], -reach, reach)
                ax.plot(ends, [n, n], color=COLOURS[0], linewidth=2.4, solid_capstyle="butt")
            ax.plot([c.by_seed.value], [n], "D", color=COLOURS[0], mfc=fill, markersize=6)
        _rows(ax, [_cell_name(c.cell, c.policy) for c in results])
        ax.axvline(0, color=MUTED, linewidth=1)
        ax.set_xlim(-reach, reach)
        ax.set_title(results[0].task)
        ax.set_xlabel("success minus no dispersion; bars: 95 % over training seeds; dots: training seeds")

    return draw


def _reach(results: Sequence[Comparison]) -> float:
    """Half the width of an axis that shows every training seed; intervals may be cut off at its ends."""
    return max([0.1, *(abs(d) for c in results for d in c.differences)]) * 1.15


def draw_heat(results: Sequence[Comparison], mode: str, tasks: Sequence[str]) -> Draw:
    """Variants x layers of one mode, a panel for each task; blue is better, orange worse."""
    variants = [v for v in VARIANTS if any(c.row["variant"] == v for c in results)]
    layers = [v for v in LAYERS if any(c.row["layer"] == v for c in results)]
    reach = max([0.05, *(abs(c.by_seed.value) for c in results)])

    def draw(figure: Figure) -> None:
        for ax, task in zip(figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0], tasks, strict=True):
            for c in (c for c in results if c.task == task):
                x, y, value = layers.index(c.row["layer"]), variants.index(c.row["variant"]), c.by_seed.value
                colour = COLOURS[0] if value >= 0 else COLOURS[1]
                share = 0.08 + 0.62 * abs(value) / reach
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, alpha=share, linewidth=0))
                ax.text(x, y, f"{value:+.2f}".replace("-", "−"), ha="center", va="center", color=INK)
            ax.set_xticks(range(len(layers)), layers)
            ax.set_yticks(range(len(variants)), variants, color=INK)
            ax.set_xlim(-0.5, len(layers) - 0.5)
            ax.set_ylim(len(variants) - 0.5, -0.5)
            ax.grid(visible=False)
            ax.set_title(f"{task}, {mode}")

    return draw


def draw_difficulty(results: Sequence[Comparison], difficulties: dict[str, float]) -> Draw:
    """Gain of each training seed by the task's difficulty, with a line and the 95 % band of its mean."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        x = np.array([difficulties[c.task] for c in results for _ in c.differences])
        y = np.array([d for c in results for d in c.differences])
        ax.axhline(0, color=MUTED, linewidth=1)
        if (line := line_with_band(x, y, np.linspace(-0.02, 1.02, 60))) is not None:
            ax.fill_between(line.x, line.low, line.high, color=COLOURS[0], alpha=0.18, linewidth=0)
            ax.plot(line.x, line.mean, color=COLOURS[0])
        ax.plot(x, y, "o", color=MUTED, markersize=3.5)
        for c in results:
            at = difficulties[c.task]
            ax.plot([at], [c.by_seed.value], "D", color=COLOURS[0], markersize=7)
            ax.annotate(c.task, (at, c.by_seed.value), (7, 7), textcoords="offset points", color=INK)
        ax.set_xlim(-0.04, 1.04)
        ax.set_xlabel("difficulty: log-normalised length of the published demonstrations (Lift 0, Transport 1)")
        ax.set_ylabel("success minus no dispersion")

    return draw


def draw_sweep(groups: dict[str, list[Comparison]]) -> Draw:
    """Difference by lambda; a line for each task and form."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.axhline(0, color=MUTED, linewidth=1)
        for n, (name, group) in enumerate(groups.items()):
            own, shift = sorted(group, key=lambda c: c.row["weight"]), 1.03 ** (n - (len(groups) - 1) / 2)
            x, y = [c.row["weight"] * shift for c in own], np.array([c.by_seed.value for c in own])
            sure = [c.by_seed if len(c.seeds) > 1 else None for c in own]
            bars = np.array([[v - i.low, i.high - v] if i else [0, 0] for v, i in zip(y, sure, strict=True)]).T
            look = {"color": COLOURS[n % len(COLOURS)], "marker": "osD^v"[n % 5]}
            ax.errorbar(x, y, bars, label=label(name, 60), capsize=2, markersize=5, elinewidth=1, **look)
        reach = _reach([c for own in groups.values() for c in own])
        ax.set_ylim(-reach, reach)
        ax.set_xscale("log")
        ticks = sorted({c.row["weight"] for own in groups.values() for c in own})
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        ax.set_xlabel("λ, the weight of the dispersive loss")
        ax.set_ylabel("success minus no dispersion")
        figure.legend(loc="outside upper left", ncols=2)

    return draw


STATISTICS = (
    ("effective_rank", "Effective rank"),
    ("relative_distance", "Relative pair distance"),
    ("similarity", "Similarity in a batch (cosine)"),
)


def draw_features(rows: Sequence[Row], layer: str) -> Draw:
    """Statistics of one layer over training: mean over training seeds, a line for each cell."""
    names = _cells(rows)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(STATISTICS))
        for ax, (name, title) in zip(axes, STATISTICS, strict=True):
            for n, cell in enumerate(names):
                curves = [row["features"].get(f"{layer}/{name}") for row in rows if row["cell"] == cell]
                _mean_curve(ax, [c for c in curves if c], n)
            ax.set_title(title)
            ax.set_xlabel("gradient steps")
            ax.ticklabel_format(axis="x", style="plain")
            ax.locator_params(axis="x", nbins=4)
        handles = [axes[0].plot([], [], **_look(n))[0] for n in range(len(names))]
        figure.legend(handles, [label(n, 44) for n in names], loc="outside upper left", ncols=2)

    return draw


def draw_finetuning(rows: Sequence[Row], tasks: Sequence[str]) -> Draw:
    """Success of the training episodes from each initialisation: mean and range over training seeds."""
    names = _cells(rows)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for ax, task in zip(axes, tasks, strict=True):
            for n, cell in enumerate(names):
                _mean_curve(ax, [r["curve"] for r in rows if (r["task"], r["cell"]) == (task, cell) and r["curve"]], n)
            ax.set_title(task)
            ax.set_ylim(-0.03, 1.03)
            ax.set_xlabel("thousand control steps")
            ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
        axes[0].set_ylabel("success while fine-tuning")
        handles = [axes[0].plot([], [], **_look(n))[0] for n in range(len(names))]
        figure.legend(handles, [f"from {label(n, 40)}" for n in names], loc="outside upper left", ncols=2)

    return draw


def _cells(rows: Sequence[Row]) -> list[str]:
    """Cells, no dispersion second: so its colour is the same in every figure."""
    names = list(dict.fromkeys(row["cell"] for row in rows))
    if len(names) > 1 and names[0].startswith("none"):
        names[:2] = names[1], names[0]
    return names


def _look(n: int) -> dict[str, Any]:
    return {"color": COLOURS[n % len(COLOURS)], "linestyle": ("-", "--", "-.", ":")[n // len(COLOURS) % 4]}


def _mean_curve(ax: Axes, curves: Sequence[Sequence[Sequence[float]]], n: int) -> None:
    """Mean of several curves, and their range as a band, on the shortest one's points."""
    if not curves:
        return
    count = min(map(len, curves))
    x = np.mean([[p[0] for p in c[:count]] for c in curves], 0)
    y = np.array([[p[1] for p in c[:count]] for c in curves])
    if len(curves) > 1:
        ax.fill_between(x, y.min(0), y.max(0), color=COLOURS[n % len(COLOURS)], alpha=0.15, linewidth=0)
    ax.plot(x, y.mean(0), marker="o" if count < 4 else None, markersize=3.5, **_look(n))
