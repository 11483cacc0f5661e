"""What a study's report says, section by section. A section without material is empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import report_figures
from ..report_page import Html, details, element, figure, join, section, table
from ..statistics import Interval
from . import figures
from .captions import CAPTIONS, NOTES
from .schema import Study, difficulty
from .statistics import line_with_band
from .table import CellResult, Comparison, Row, cells, comparisons, good, on_the_way


@dataclass
class Material:
    """What the page is made of, and the figures that were drawn for it, by name."""

    study: Study
    about: dict[str, Any]
    rows: list[Row]
    cost: tuple[float, float]
    planned: int
    pictures: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cells = cells(self.rows, self.study)
        self.comparisons = comparisons(self.rows, self.study)
        self.on_the_way = on_the_way(self.rows, self.study)

    def draw(self, name: str, drawing: report_figures.Draw, height: float, caption: str) -> Html:
        """A figure of the page, kept as PNG, too."""
        self.pictures[name] = report_figures.png(drawing, (report_figures.WIDTH, height))
        return figure(report_figures.svg(drawing, height, len(self.pictures)), caption)


def content(m: Material) -> Html:
    """The page's body."""
    parts: Sequence[tuple[str, Callable[[Material], Html]]] = (
        ("Primary comparison", _primary),
        ("Success of every cell", _success),
        ("Differences against no dispersion", _differences),
        ("Variants and layers", _heat),
        ("Gain and difficulty of the task", _difficulty),
        ("The weight λ", _sweep),
        ("Features during pre-training", _features),
        ("Fine-tuning from each initialisation", _finetuning),
        ("Runs that failed", _failures),
        ("How it was made", _making),
    )
    head = [element("h1", f"Study {m.study.name}"), _state(m)]
    return join([*head, *(section(title, part(m)) for title, part in parts)])


def percent(value: Interval) -> str:
    """+0.120 [-0.010, +0.250], with real minus signs."""
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]".replace("-", "\u2212")


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _state(m: Material) -> Html:
    done = len({row["run"] for row in good(m.rows)})
    failed = len({row["run"] for row in m.rows if row["status"] == "failed"})
    kind = (
        "Primary study: one comparison was stated before the runs."
        if m.study.primary
        else ("Exploratory study: it suggests what to test, and decides nothing.")
    )
    partial = "" if done + failed == m.planned else " Partial results: the study has not finished."
    return join(
        [
            element("p", m.study.question, "lead"),
            element("p", f"{kind} {done} of {m.planned} runs are there, {failed} failed.{partial}"),
            element("p", f"Layer rule, fixed before the runs: {m.study.layer_rule}.", "muted"),
        ]
    )


# --- success and differences --------------------------------------------------------------------------------------


def _comparison_rows(results: Sequence[Comparison]) -> Html:
    head = (
        "task",
        "cell minus no dispersion",
        "seeds",
        "difference [95 %, seeds]",
        "[95 %, episodes]",
        "p",
        "p (Holm)",
    )
    rows = []
    for c in results:
        name = c.cell if c.policy == "pretrained" else f"{c.cell}, fine-tuned"
        seeds = percent(c.by_seed) if len(c.seeds) > 1 else f"{c.by_seed.value:+.3f}".replace("-", "\u2212")
        rows.append((c.task, name, len(c.seeds), seeds, percent(c.by_episode), _p(c.p), _p(c.p_holm)))
    return table(head, rows, numbers=(2, 3, 4, 5, 6))


def _primary(m: Material) -> Html:
    if m.study.primary is None:
        return Html("")
    stated = [c for c in m.comparisons if c.family == "primary"]
    parts = [element("p", f"Stated before the runs: {m.study.primary.statement}.")]
    if not stated:
        return join([*parts, element("p", "No training seed of both sides is there yet.")])
    parts += [element("p", _verdict(c, m), "lead") for c in stated]
    count = len(m.study.primary.tasks or m.study.tasks)
    note = (
        "One two-sided paired permutation test for each task, over training seeds: success of the two policies of a "
        f"seed on the same evaluation episodes; p corrected by Holm for {count} task{'s' if count > 1 else ''}."
    )
    return join([*parts, _comparison_rows(stated), element("p", note, "muted")])


def _verdict(c: Comparison, m: Material) -> str:
    start = f"{c.task}: {percent(c.by_seed)} over {len(c.seeds)} training seeds"
    if len(c.seeds) < len(m.study.seeds):
        return f"{start}, of {len(m.study.seeds)} stated: not decided yet."
    if c.p_holm is not None and c.p_holm < 0.05:
        return f"{start}, p = {_p(c.p_holm)}: {'better' if c.by_seed.value > 0 else 'worse'} than no dispersion."
    return f"{start}, p = {_p(c.p_holm)}: not told apart from no dispersion."


def _success(m: Material) -> Html:
    if not m.cells:
        return element("p", "No run has finished yet.")
    drawings = []
    for task in dict.fromkeys(c.task for c in m.cells):
        own = [c for c in m.cells if c.task == task]
        drawing = figures.draw_success(own)
        drawings.append(m.draw(f"success-{task}", drawing, 0.9 + 0.34 * len(own), CAPTIONS["success"]))
    rows = [_cell_row(c) for c in m.cells]
    head = ("task", "cell", "policy", "success [95 %]", "successes", "training seeds", "CPU min")
    return join([*drawings, table(head, rows, numbers=(3, 4, 5, 6)), element("p", NOTES["success"], "muted")])


def _cell_row(c: CellResult) -> tuple[Any, ...]:
    episodes, successes = (sum(r[k] for r in c.rows) for k in ("episodes", "successes"))
    minutes = sum(r["cpu_seconds"] for r in c.rows) / 60
    name = figures.NAMES[c.policy]
    return (c.task, c.cell, name, str(c.rate), f"{successes}/{episodes}", len(c.rows), f"{minutes:.1f}")


def _differences(m: Material) -> Html:
    if not m.comparisons:
        return Html("")
    order = sorted(m.comparisons, key=lambda c: list(m.study.tasks).index(c.task))
    parts = []
    for task in dict.fromkeys(c.task for c in order):
        own = [c for c in order if c.task == task]
        drawing = figures.draw_differences(own)
        parts.append(m.draw(f"differences-{task}", drawing, 0.9 + 0.34 * len(own), CAPTIONS["differences"]))
    exploratory = [c for c in order if c.family == "exploratory"]
    if exploratory:
        tested = sum(c.p is not None for c in exploratory)
        note = (
            f"Exploratory: p corrected by Holm for the {tested} of these {len(exploratory)} comparisons that have one. "
        )
        fewest = max(len(c.seeds) for c in exploratory)
        if 1 < fewest < 6:
            note += f"With {fewest} training seeds no p can lie below {2 / 2**fewest:g}, whatever the effect. "
        parts += [_comparison_rows(exploratory), element("p", note + NOTES["differences"], "muted")]
    return join(parts)


# --- maps and curves ----------------------------------------------------------------------------------------------


def _plain(m: Material) -> list[Comparison]:
    return [c for c in m.comparisons if c.policy == "pretrained" and not c.row["factors"]]


def _heat(m: Material) -> Html:
    parts = []
    for mode, weight in dict.fromkeys((c.row["mode"], c.row["weight"]) for c in _plain(m)):
        own = [c for c in _plain(m) if (c.row["mode"], c.row["weight"]) == (mode, weight)]
        variants, layers = ({c.row[k] for c in own} for k in ("variant", "layer"))
        if len(variants) * len(layers) > 1:
            tasks, name = list(dict.fromkeys(c.task for c in own)), f"layers-{mode}-{weight:g}"
            drawing, height = figures.draw_heat(own, mode, tasks), 0.9 + 0.45 * len(variants)
            parts.append(m.draw(name, drawing, height, f"{CAPTIONS['heat']} Mode {mode}, λ {weight:g}."))
    return join(parts)


def _difficulty(m: Material) -> Html:
    lengths = {name: task.steps for name, task in m.study.tasks.items() if task.steps is not None}
    plain = [c for c in _plain(m) if c.task in lengths]
    stated = [c for c in plain if m.study.primary is None or c.family == "primary"]
    names = list(dict.fromkeys(c.cell for c in stated))
    parts, where = [], {name: difficulty(steps) for name, steps in lengths.items()}
    for name in names:
        own = [c for c in stated if c.cell == name]
        if len({c.task for c in own}) > 2 - (m.study.primary is not None):
            drawing = figures.draw_difficulty(own, where)
            parts.append(m.draw(f"difficulty-{name}", drawing, 3.2, f"{name}. {CAPTIONS['difficulty']}"))
            parts.append(_slope(own, where))
    return join([*parts, element("p", NOTES["difficulty"], "muted")]) if parts else Html("")


def _slope(own: Sequence[Comparison], where: dict[str, float]) -> Html:
    x, y = (
        [v for c in own for v in values(c)]
        for values in (lambda c: [where[c.task]] * len(c.seeds), lambda c: c.differences)
    )
    line = line_with_band(x, y, [0.0])
    if line is None:
        return Html("")
    return element("p", f"Slope {percent(line.slope)} from difficulty 0 to 1, p = {_p(line.p)} (of a line).")


def _sweep(m: Material) -> Html:
    groups: dict[str, list[Comparison]] = {}
    for c in _plain(m):
        groups.setdefault(f"{c.task}: {c.row['mode']}, {c.row['variant']}, {c.row['layer']}", []).append(c)
    groups = {name: own for name, own in groups.items() if len(own) > 1}
    if not groups:
        return Html("")
    return m.draw("lambda", figures.draw_sweep(groups), 3.2 + 0.1 * len(groups), CAPTIONS["lambda"])


def _features(m: Material) -> Html:
    rows = [row for row in good(m.rows) if row["policy"] == "pretrained" and row["features"]]
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        for layer in dict.fromkeys(name.partition("/")[0] for row in own for name in row["features"]):
            here = [r for r in own if r["mode"] == "off" or r["layer"] in (layer, "all")]
            parts += [_features_of(m, task, layer, group, shown) for group, shown in _groups(here).items()]
    return join(parts)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """No dispersion beside the cells of each mode, and beside those with factors: more lines cannot be told apart."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["mode"] != "off":
            groups.setdefault("factors" if row["factors"] else row["mode"], []).append(row)
    plain = [row for row in rows if row["cell"] == "none"]
    return {name: plain + own for name, own in groups.items()} or {"off": plain}


def _features_of(m: Material, task: str, layer: str, group: str, rows: Sequence[Row]) -> Html:
    height = 2.6 + 0.09 * len({row["cell"] for row in rows})
    caption = f"{task}, features of the layer '{layer}'. {CAPTIONS['features']}"
    return m.draw(f"features-{task}-{layer}-{group}", figures.draw_features(rows, layer), height, caption)


def _finetuning(m: Material) -> Html:
    rows = [row for row in good(m.rows) if row["policy"] == "finetuned" and row.get("curve")]
    if not rows:
        return Html("")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    drawn = m.draw("finetuning", figures.draw_finetuning(rows, tasks), 3.2, CAPTIONS["finetuning"])
    soon = [(w.task, w.cell, w.seeds, f"{w.base_rate:.3f}", f"{w.rate:.3f}", percent(w.by_seed))
            for w in m.on_the_way]  # fmt: skip
    if not soon:
        return drawn
    heads = ("task", "from", "training seeds", "mean success from no dispersion", "mean success", "difference")
    return join([drawn, table(heads, soon), element("p", NOTES["finetuning"], "muted")])


def _failures(m: Material) -> Html:
    rows = [(r["run"], figures.NAMES[r["policy"]], r["reason"]) for r in m.rows if r["status"] == "failed"]
    return table(("run", "policy", "reason"), rows) if rows else Html("")


def _making(m: Material) -> Html:
    facts = [
        ("command", f"d2ppo study run {m.about.get('file', '')}"),
        ("digest of the study's file (sha256)", m.about["digest"]),
        ("code version", m.about.get("code_version", "")),
        ("begun", m.about.get("begun", "")),
        ("CPU hours so far", f"{m.cost[0] / 3600:.2f} of {m.study.budget.cpu_hours:g} expected"),
        ("how that was estimated", m.study.budget.measured),
        ("training seeds", ", ".join(map(str, m.study.seeds))),
        ("evaluation episodes", f"{m.study.evaluation.episodes} for each training seed, a block of its own"),
        (
            "demonstrations",
            "recorded anew for each training seed" if m.study.demonstrations == "each_seed" else "shared",
        ),
    ]
    shown = m.study.model_dump_json(indent=2)
    return join([table(("", ""), facts), details("The whole study", element("pre", shown))])
