"""The figures of a report: drawn once with matplotlib, for the page as SVG whose colours follow the page's theme.

Colours are Okabe and Ito's (2008), which colour-blind readers tell apart; runs also differ in their line style.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .report_runs import Run

INK, MUTED, GRID = "#1f2328", "#5b6470", "#dfe3e8"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = ("-", "--", "-.", ":")
POINTS = 400  # of a drawn curve; longer ones are averaged in bins
WIDTH = 9.0  # inches: 1 pt in a figure is about 1.4 px on the page
RC = {
    "svg.hashsalt": "d2ppo",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
}
FONT = re.compile(r"(font(?:-family)?: ?[^;\"]*?)(?:'[^']*'|sans-serif)(?:, ?(?:'[^']*'|[\w -]+))*")  # in a style
Draw = Callable[[Figure], None]
Rows = Sequence[tuple[str, Run, str]]  # evaluated policies: (label, run, role)


def _render(draw: Draw, size: tuple[float, float], kind: str) -> bytes:
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run's name may hold signs that the font lacks
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.05, hspace=0.06)
        draw(figure)
        buffer = io.BytesIO()
        if kind == "svg":
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
        else:
            figure.set_dpi(150)
            figure.set_facecolor("white")
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def png(draw: Draw, size: tuple[float, float]) -> bytes:
    """A light picture, for places that show no SVG."""
    return _render(draw, size, "png")


def svg(draw: Draw, height: float, number: int) -> str:
    """An inline SVG: colours become CSS variables, ids unique on the page, and nothing refers to anything outside."""
    text = _render(draw, (WIDTH, height), "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'^<svg width="[^"]*" height="[^"]*"', "<svg", re.sub(r"<svg ([^>]*?)>", _ordered, text, count=1))
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{number}-", text)
    text = FONT.sub(r"\1system-ui, sans-serif", text)
    series = ((f"c{n}", colour) for n, colour in enumerate(COLOURS))
    for name, colour in [("ink", INK), ("muted", MUTED), ("grid", GRID), *series]:
        text = text.replace(colour, f"var(--{name})")
    return text


def _ordered(match: re.Match[str]) -> str:
    """The opening tag with nothing but its view box: the page decides the size."""
    box = re.search(r'viewBox="[^"]*"', match[1])
    return f"<svg {box[0] if box else ''}>"


# --- pieces -------------------------------------------------------------------------------------------------------


def label(text: str, width: int = 46) -> str:
    """A name that matplotlib takes as it is: printable, not too long, and not hidden by a leading underscore."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= width else text[: width // 2 - 1] + "…" + text[-width // 2 :]
    return "\u200b" + text if text.startswith("_") else text


def thin(x: np.ndarray, *ys: np.ndarray) -> list[np.ndarray]:
    """At most POINTS points, each the mean of its bin."""
    bins = np.array_split(np.arange(len(x)), min(len(x), POINTS)) if len(x) else []
    return [np.array([v[b].mean() for b in bins]) for v in (x, *ys)]


def look(n: int) -> dict[str, Any]:
    """Colour and line style of the n-th run."""
    return {"color": COLOURS[n % len(COLOURS)], "linestyle": STYLES[n % len(STYLES)]}


def _curve(ax: Axes, run: Run, n: int, metric: str, **options: Any) -> bool:
    x, y = thin(*run.curve(metric, **options))
    if len(x):
        ax.plot(x, y, marker="o" if len(x) < 12 else None, markersize=3.5, **look(n))
    return len(x) > 0


def _axes(ax: Axes, title: str, x: str, y: str = "", *, log: bool = False, unit: bool = False) -> None:
    ax.set_title(title)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(_short))
    values = np.concatenate([line.get_ydata() for line in ax.lines]) if ax.lines else np.array([])
    if log and len(values) and values.min() > 0 and values.max() > 10 * values.min():
        ax.set_yscale("log")  # only where it helps: less than a decade reads better on a linear axis
    if unit:
        ax.set_ylim(-0.03, 1.03)
    if not (ax.lines or ax.patches):
        ax.text(0.5, 0.5, "nothing recorded", transform=ax.transAxes, ha="center", va="center", color=MUTED)


def _short(value: float, _: int) -> str:
    """200, 25k, 1.5M: long counts would run into each other."""
    for scale, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * scale or (suffix == "M" and abs(value) >= scale):
            return f"{value / scale:g}{suffix}"
    return f"{value:g}"


def _legend(figure: Figure, ax: Axes, names: Sequence[str]) -> None:
    """One legend above all panels, for every run by its place in the list."""
    handles = [ax.plot([], [], **look(n))[0] for n in range(len(names))]
    columns = 1 if max(map(len, names)) > 34 else 2
    shown = [label(name, 70) for name in names]
    figure.legend(handles, shown, loc="outside upper left", ncols=columns, handlelength=2.6)


# --- figures ------------------------------------------------------------------------------------------------------


def success(ax: Axes, rows: Rows) -> None:
    """Success rates with their intervals, one row a policy; rows are (label, run, role)."""
    for n, (_, run, role) in enumerate(rows):
        policy = run.policies[role]
        rate, colour = policy.rate, COLOURS[1] if role == "baseline" else COLOURS[0]
        ax.plot([rate.low, rate.high], [n, n], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot([rate.value], [n], "s" if role == "baseline" else "o", color=colour, markersize=8)
        text = f"{rate.value:.3f}  ({sum(policy.success)}/{len(policy.success)})"
        right = rate.high < 0.72
        ax.annotate(
            text,
            (rate.high if right else rate.low, n),
            (9 if right else -9, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            color=INK,
        )
    ax.set_yticks(range(len(rows)), [label(name, 34) for name, _, _ in rows], color=INK)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(-0.02, 1.02)
    ax.grid(axis="y", visible=False)
    ax.set_title("Success on the evaluation seeds")
    ax.set_xlabel("success rate, with Wilson's 95 % interval")


def rollout_success(ax: Axes, runs: Sequence[Run]) -> None:
    """Success of the finished training episodes with its band, and the evaluations in between, by control steps."""
    x_name = "rollout/control_steps"
    for n, run in enumerate(runs):
        x, rate = run.curve("rollout/success_rate", x_name, having="rollout/episodes")
        _, low = run.curve("rollout/success_low", x_name, having="rollout/episodes")
        _, high = run.curve("rollout/success_high", x_name, having="rollout/episodes")
        if len(x) and len(x) == len(low) == len(high):
            x, rate, low, high = thin(x, rate, low, high)
            ax.fill_between(x, low, high, color=COLOURS[n % len(COLOURS)], alpha=0.2, linewidth=0)
            ax.plot(x, rate, marker="o" if len(x) < 12 else None, markersize=3.5, **look(n))
        points = [run.curve(f"evaluation/success_{k}", x_name) for k in ("rate", "low", "high")]
        if len(points[0][0]) and len({len(y) for _, y in points}) == 1:
            (x, value), (_, low), (_, high) = points
            reach = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
            fill = COLOURS[n % len(COLOURS)]
            ax.errorbar(x, value, reach, fmt="D", color=INK, mfc=fill, markersize=4.5, capsize=2, linewidth=1)
    _axes(ax, "Success while fine-tuning, with exploration noise", "control steps", "success rate", unit=True)


def draw_success(rows: Rows) -> Draw:
    """The headline figure."""
    return lambda figure: success(figure.subplots(), rows)


def draw_pretraining(runs: Sequence[Run], names: Sequence[str]) -> Draw:
    """Training loss, held-out loss, error of sampled actions."""
    return _panels(
        runs,
        names,
        3,
        (
            ("train/imitation_loss", "Training loss (imitation)", True),
            ("validation/loss", "Held-out loss (imitation)", True),
            ("validation/action_rmse", "Error of sampled actions", False),
        ),
        "gradient steps",
    )


def draw_features(runs: Sequence[Run], names: Sequence[str]) -> Draw:
    """What the dispersive loss does to the features."""
    return _panels(
        runs,
        names,
        2,
        (
            ("dispersive/effective_rank", "Effective rank", False),
            ("dispersive/relative_distance", "Relative pair distance", False),
            ("dispersive/feature_rms", "Feature RMS", True),
            ("dispersive/gradient_norm", "Gradient norm of the dispersive loss", True),
        ),
        "gradient steps",
    )


def _panels(
    runs: Sequence[Run], names: Sequence[str], columns: int, panels: Sequence[tuple[str, str, bool]], x: str
) -> Draw:
    """Overlaid runs; panels are (metric, title, whether a logarithmic axis may help)."""

    def draw(figure: Figure) -> None:
        axes = np.atleast_1d(figure.subplots(len(panels) // columns, columns)).ravel()
        for ax, (metric, title, log) in zip(axes, panels, strict=True):
            for n, run in enumerate(runs):
                if metric != "dispersive/gradient_norm" or run.setting("dispersive.mode") != "off":
                    _curve(ax, run, n, metric)  # without the loss there is no gradient to draw
            _axes(ax, title, x, log=log)
        _legend(figure, axes[0], names)

    return draw


def draw_finetuning(runs: Sequence[Run], names: Sequence[str]) -> Draw:
    """Success on top; how far each update went, and the critic, below."""

    def draw(figure: Figure) -> None:
        axes = figure.subplot_mosaic([["success"] * 3, ["kl", "clip", "critic"]], height_ratios=[1.5, 1])
        rollout_success(axes["success"], runs)
        for key, metric, title in (
            ("kl", "ppo/kl", "KL of an update"),
            ("clip", "ppo/clip_fraction", "Clipped share"),
            ("critic", "rollout/explained_variance", "Explained variance"),
        ):
            for n, run in enumerate(runs):
                _curve(axes[key], run, n, metric, x="rollout/control_steps")
            _axes(axes[key], title, "control steps")
        if len(runs) > 1:
            _legend(figure, axes["success"], names)

    return draw


def draw_modes(modes: dict[str, tuple[int, int]]) -> Draw:
    """Demonstrations kept, and episodes tried, of each way of doing the task; modes: name -> (kept, tried)."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for n, (kept, tried) in enumerate(modes.values()):
            ax.barh(n, tried, color="none", edgecolor=COLOURS[0], height=0.55)
            ax.barh(n, kept, color=COLOURS[0], height=0.55)
        ax.set_yticks(range(len(modes)), [label(m, 40) for m in modes], color=INK)
        ax.set_ylim(len(modes) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        _axes(ax, "Modes of the demonstrations", "episodes")

    return draw


def result_png(rows: Rows, finetunes: Sequence[Run], pretrains: Sequence[Run]) -> bytes | None:
    """Success beside the learning curve (of pre-training where nothing was fine-tuned); None where there is neither."""
    parts: list[Callable[[Axes], None]] = [lambda ax: success(ax, rows)] if rows else []
    if any(len(run.curve("rollout/success_rate")[0]) for run in finetunes):
        parts.append(lambda ax: rollout_success(ax, finetunes))
    elif any(len(run.curve("train/imitation_loss")[0]) for run in pretrains):
        finetunes = []
        parts.append(lambda ax: _loss(ax, pretrains))
    if not parts:
        return None

    def draw(figure: Figure) -> None:
        axes = np.atleast_1d(figure.subplots(1, len(parts)))
        for ax, part in zip(axes, parts, strict=True):
            part(ax)
        names = [run.name for run in (finetunes or pretrains)]
        if len(parts) > bool(rows) and len(names) > 1:
            handles = [axes[-1].plot([], [], **look(n))[0] for n in range(len(names))]
            axes[-1].legend(handles, [label(name, 30) for name in names], fontsize=8)

    return png(draw, (5.2 * len(parts), 2.8))


def _loss(ax: Axes, runs: Sequence[Run]) -> None:
    for n, run in enumerate(runs):
        _curve(ax, run, n, "train/imitation_loss")
    _axes(ax, "Training loss (imitation)", "gradient steps", log=True)
