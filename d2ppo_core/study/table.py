"""From rows to numbers: success of each cell, its paired differences against no dispersion, corrected p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from ..statistics import Interval, paired_difference, wilson
from .schema import Study
from .statistics import holm, mean_interval, sign_flip_test

Row = dict[str, Any]
KEY = ("task", "cell", "policy")


@dataclass(frozen=True)
class CellResult:
    """One cell on one task, pre-trained or fine-tuned."""

    task: str
    cell: str
    policy: str
    rows: tuple[Row, ...]  # one for each finished training seed

    @property
    def rate(self) -> Interval:
        """Success over all episodes of all seeds, with Wilson's interval."""
        return wilson(sum(r["successes"] for r in self.rows), sum(r["episodes"] for r in self.rows))

    @property
    def first(self) -> Row:
        """Any row: what all of them have in common."""
        return self.rows[0]


@dataclass(frozen=True)
class Comparison:
    """A cell minus no dispersion, on the training seeds and evaluation episodes that both have."""

    task: str
    cell: str
    policy: str
    baseline: str
    family: str  # primary | exploratory
    seeds: tuple[int, ...]
    differences: tuple[float, ...]  # of success rates, a number for each training seed
    by_seed: Interval  # of the mean over training seeds: Student's
    by_episode: Interval  # paired by episode, as if all seeds were one policy (Agresti and Min)
    p: float | None  # None: one training seed shows nothing
    p_holm: float | None
    row: Row


def good(rows: Sequence[Row]) -> list[Row]:
    """Rows of runs that came to their end."""
    return [row for row in rows if row["status"] == "ok"]


def cells(rows: Sequence[Row], study: Study) -> list[CellResult]:
    """Finished cells, in the study's order of tasks, no dispersion first."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in good(rows):
        groups.setdefault((row["task"], row["cell"], row["policy"]), []).append(row)
    tasks = list(study.tasks)
    order = sorted(groups, key=lambda k: (k[2] != "pretrained", tasks.index(k[0]), not k[1].startswith("none"), k[1]))
    return [CellResult(*key, tuple(sorted(groups[key], key=lambda r: r["seed"]))) for key in order]


def comparisons(rows: Sequence[Row], study: Study) -> list[Comparison]:
    """Every cell against its own baseline; p corrected by Holm, the primary family apart from the exploratory one."""
    found = cells(rows, study)
    by_key = {(c.task, c.cell, c.policy): c for c in found}
    made = []
    for cell in found:
        base = by_key.get((cell.task, cell.first["baseline"], cell.policy))
        if cell.first["mode"] != "off" and base is not None:
            made.append(_compare(cell, base, study))
    made = [c for c in made if c is not None]
    stated = len(study.primary.tasks or study.tasks) if study.primary else 0  # all count, also those not there yet
    return [
        *_corrected([c for c in made if c.family == "primary"], stated),
        *_corrected([c for c in made if c.family == "exploratory"], 0),
    ]


def _compare(cell: CellResult, base: CellResult, study: Study) -> Comparison | None:
    other = {row["seed"]: row for row in base.rows}
    pairs = [(other[row["seed"]], row) for row in cell.rows if row["seed"] in other]
    pairs = [(a, b) for a, b in pairs if (a["first_seed"], a["episodes"]) == (b["first_seed"], b["episodes"])]
    if not pairs:
        return None
    differences = [b["successes"] / b["episodes"] - a["successes"] / a["episodes"] for a, b in pairs]
    first, second = ([o == "1" for pair in pairs for o in pair[side]["outcomes"]] for side in (0, 1))
    return Comparison(
        cell.task,
        cell.cell,
        cell.policy,
        base.cell,
        family_of(cell, study),
        tuple(b["seed"] for _, b in pairs),
        tuple(differences),
        mean_interval(differences),
        paired_difference(first, second),
        sign_flip_test(differences) if len(differences) > 1 else None,
        None,
        cell.first,
    )


@dataclass(frozen=True)
class OnTheWay:
    """Success of the training episodes, averaged over a whole fine-tuning: who gets there sooner has more of it."""

    task: str
    cell: str
    baseline: str
    seeds: int
    rate: float  # mean over training seeds
    base_rate: float
    by_seed: Interval  # of the mean difference: Student's


def on_the_way(rows: Sequence[Row], study: Study) -> list[OnTheWay]:
    """Every fine-tuned cell against its own baseline, on the training seeds that both have."""
    curves: dict[tuple[str, str], dict[int, float]] = {}
    tuned = [c for c in cells(rows, study) if c.policy == "finetuned"]
    for cell in tuned:
        means = {row["seed"]: mean(y for _, y in row["curve"]) for row in cell.rows if row.get("curve")}
        curves[cell.task, cell.cell] = means
    found = []
    for cell in tuned:
        own, base = curves[cell.task, cell.cell], curves.get((cell.task, cell.first["baseline"]), {})
        both = [seed for seed in own if seed in base]
        if cell.first["mode"] != "off" and both:
            rates = (mean(own[s] for s in both), mean(base[s] for s in both))
            gain = mean_interval([own[s] - base[s] for s in both])
            found.append(OnTheWay(cell.task, cell.cell, cell.first["baseline"], len(both), *rates, gain))
    return found


def family_of(cell: CellResult, study: Study) -> str:
    """Whether a comparison was stated before the runs."""
    p = study.primary
    stated = p is not None and cell.cell == p.cell and cell.policy == "pretrained"
    return "primary" if stated and cell.task in (p.tasks or study.tasks) else "exploratory"


def _corrected(family: list[Comparison], stated: int) -> list[Comparison]:
    """With p corrected for the tests of the family, at least `stated`: a missing one counts as p = 1."""
    tested = [c for c in family if c.p is not None]
    missing = [1.0] * max(0, stated - len(tested))
    corrected = holm([*(c.p for c in tested if c.p is not None), *missing])[: len(tested)]
    by_id = dict(zip(map(id, tested), corrected, strict=True))
    return [replace(c, p_holm=by_id.get(id(c))) for c in family]


# --- as tables ----------------------------------------------------------------------------------------------------


def cells_table(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """For cells.csv."""
    return [
        {
            "task": c.task,
            "cell": c.cell,
            "policy": c.policy,
            **{name: c.first[name] for name in ("mode", "variant", "layer", "weight")},
            "factors": "+".join(c.first["factors"]),
            "training_seeds": " ".join(str(r["seed"]) for r in c.rows),
            "successes": sum(r["successes"] for r in c.rows),
            "episodes": sum(r["episodes"] for r in c.rows),
            **{f"success_{k}": round(v, 4) for k, v in asdict(c.rate).items()},
            "cpu_seconds": round(sum(r["cpu_seconds"] for r in c.rows), 1),
        }
        for c in results
    ]


def comparisons_table(results: Sequence[Comparison]) -> list[dict[str, Any]]:
    """For comparisons.csv."""
    return [
        {
            "family": c.family,
            "task": c.task,
            "cell": c.cell,
            "minus": c.baseline,
            "policy": c.policy,
            "training_seeds": len(c.seeds),
            **{f"difference_{k}": round(v, 4) for k, v in asdict(c.by_seed).items()},
            **{f"by_episode_{k}": round(v, 4) for k, v in asdict(c.by_episode).items()},
            "p": "" if c.p is None else round(c.p, 6),
            "p_holm": "" if c.p_holm is None else round(c.p_holm, 6),
            "each_seed": " ".join(f"{d:+.3f}" for d in c.differences),
        }
        for c in results
    ]


def on_the_way_table(results: Sequence[OnTheWay]) -> list[dict[str, Any]]:
    """For finetuning.csv."""
    return [
        {
            "task": w.task,
            "cell": w.cell,
            "minus": w.baseline,
            "training_seeds": w.seeds,
            "mean_success": round(w.rate, 4),
            "mean_success_of_baseline": round(w.base_rate, 4),
            **{f"difference_{k}": round(v, 4) for k, v in asdict(w.by_seed).items()},
        }
        for w in results
    ]


def runs_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For runs.csv: a line for each run and policy, failed ones, too."""
    names = ("run", "policy", "status", "reason", "seed", "first_seed", "episodes", "successes", "outcomes")
    more = ("validation_loss", "dataset_digest", "cpu_seconds", "wall_seconds", "finished")
    return [{name: row.get(name, "") for name in (*names, *more)} for row in sorted(rows, key=lambda r: r["run"])]
