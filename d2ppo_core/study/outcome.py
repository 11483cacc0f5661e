"""The rows of the table of results: what a finished run's folders say, and what is said of a failed one."""

from __future__ import annotations

from typing import Any

from ..report_runs import number, read_run
from .plan import Plan, Run

CURVE = 60  # points of a curve that a row keeps
STATISTICS = ("effective_rank", "relative_distance", "similarity")


def _about(plan: Plan, run: Run, policy: str, cost: tuple[float, float]) -> dict[str, Any]:
    cell = run.cell
    return {
        "run": run.name,
        "policy": policy,
        "study": plan.study.name,
        "task": run.task,
        "cell": cell.name,
        "baseline": plan.baseline(cell).name,
        "mode": cell.mode,
        "variant": cell.variant,
        "layer": cell.layer,
        "weight": cell.weight,
        "factors": list(cell.factors),
        "seed": run.seed,
        "cpu_seconds": round(cost[0], 1),
        "wall_seconds": round(cost[1], 1),
    }


def failed_rows(plan: Plan, run: Run, cost: tuple[float, float], reason: str) -> list[dict[str, Any]]:
    """A run that did not come to its end. What it evaluated before is kept."""
    rows = []
    for policy, stage in _policies(run):
        if (plan.folder / "runs" / run.name / stage / "summary.json").exists():
            rows.append(_evaluated(plan, run, policy, stage, cost))
        else:
            rows.append({**_about(plan, run, policy, cost), "status": "failed", "reason": reason})
    return rows


def finished_rows(plan: Plan, run: Run, cost: tuple[float, float]) -> list[dict[str, Any]]:
    """One row for the pre-trained policy, and one for the fine-tuned."""
    return [_evaluated(plan, run, policy, stage, cost) for policy, stage in _policies(run)]


def _policies(run: Run) -> list[tuple[str, str]]:
    return [("pretrained", "evaluate"), *([("finetuned", "evaluate-finetuned")] if run.finetuned else [])]


def _evaluated(plan: Plan, run: Run, policy: str, stage: str, cost: tuple[float, float]) -> dict[str, Any]:
    folder = plan.folder / "runs" / run.name
    evaluated = read_run(folder / stage, stage)
    outcome = evaluated.policies["policy"]
    row = {
        **_about(plan, run, policy, cost),
        "status": "ok",
        "reason": "",
        "successes": sum(outcome.success),
        "episodes": len(outcome.success),
        "first_seed": outcome.seeds[0],
        "outcomes": "".join("1" if s else "0" for s in outcome.success),
        "protocol": evaluated.summary.get("protocol", {}),
    }
    return row | (_pretraining(plan, run) if policy == "pretrained" else _finetuning(plan, run))


def _pretraining(plan: Plan, run: Run) -> dict[str, Any]:
    """The dataset, the losses, and the features' statistics over training, layer by layer."""
    made = read_run(plan.folder / "runs" / run.name / "pretrain", "pretrain")
    names = {name for line in made.metrics for name in line if name.startswith("features/")}
    curves = {}
    for name in sorted(names):
        x, y = made.curve(name)
        kept = range(0, len(x), max(1, -(-len(x) // CURVE)))
        curves[name.removeprefix("features/")] = [[int(x[n]), round(float(y[n]), 5)] for n in kept]
    return {
        "dataset_digest": str(made.summary.get("dataset_digest", "")),
        "validation_loss": number(made.summary.get("validation/loss")),
        "features": curves,
    }


def _finetuning(plan: Plan, run: Run) -> dict[str, Any]:
    """Success of the training episodes by control steps."""
    made = read_run(plan.folder / "runs" / run.name / "finetune", "finetune")
    x, y = made.curve("rollout/success_rate", "rollout/control_steps", having="rollout/episodes")
    return {"curve": [[int(a), round(float(b), 5)] for a, b in zip(x, y, strict=True)]}
