"""What is in a recorded trial, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from d2ppo_core.statistics import wilson

from ..decoding import safety_of
from ..records import SECOND, Chunk, Command, Episode, SafetyReport
from .export import succeeded
from .reader import Trial

# What is there with every number, by the end of its topic and the field: safety answers each of the executor's commands
# under its number. Of what a robot obeys there are some alone.
NUMBERED = {"command/requested": "sequence", "command/sent": "sequence", "/frame": "number"}


def describe(trial: Trial) -> dict[str, Any]:
    """Everything that `d2ppo trials show` prints."""
    about = trial.about
    times, gaps = _times_and_gaps(trial)
    received = [t for span in times.values() for t in span]
    duration = (max(received) - min(received)) / SECOND if received else 0.0
    lost = any(gaps.values())
    return {
        "folder": str(trial.folder),
        "trial": trial.metadata.get("trial", trial.folder.name),
        "seed": trial.metadata.get("seed"),
        "task": (trial.metadata.get("policy") or {}).get("task"),
        "state": about.get("state"),
        "outcome": about.get("outcome", {}),
        "success": succeeded(trial),
        "ended": _ended(about),
        "duration": duration,
        "lossy": bool(about.get("lossy")) or lost,
        "topics": {
            name: {**count, "missing": gaps.get(name), "rate": _rate(count["written"], times.get(name))}
            for name, count in about.get("topics", {}).items()
        },
        "chunks": _chunks(trial),
        "commands": _commands(trial),
        "episode": _episode(trial),
        "safety": _safety(trial),
    }


def _ended(about: dict[str, Any]) -> str:
    """How the record came to its end, where that is not how a trial's does: a hint that its outcome is missing."""
    why = about.get("outcome", {}).get("ended", "")
    if about.get("state") != "complete":
        return f"the recorder was killed; its state is '{about.get('state')}'"
    return "" if why in ("stopped", "") else f"{why} before the trial's end"


def _times_and_gaps(trial: Trial) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """By topic: when its first and last message were received; how many numbers are missing in between. What safety
    commands by itself has none (0).
    """
    times: dict[str, tuple[int, int]] = {}
    seen: dict[str, set[int]] = {}
    for recorded in trial.messages():
        first, _ = times.get(recorded.topic, (recorded.received, 0))
        times[recorded.topic] = first, recorded.received
        field = next((field for end, field in NUMBERED.items() if recorded.topic.endswith(end)), None)
        number = getattr(recorded.message, field) if field else 0
        if number:
            seen.setdefault(recorded.topic, set()).add(number)
    return times, {topic: max(found) - min(found) + 1 - len(found) for topic, found in seen.items()}


def _rate(count: int, span: tuple[int, int] | None) -> float | None:
    """Messages a second."""
    return (count - 1) * SECOND / (span[1] - span[0]) if span and span[1] > span[0] else None


def _chunks(trial: Trial) -> dict[str, Any]:
    """How many, by which policy, and how long it took."""
    chunks = trial.records(Chunk, "policy/chunk")
    if not chunks:
        return {"count": 0}
    took = np.array([chunk.inference for chunk in chunks]) / 1e6
    median, high, worst = (float(np.quantile(took, q)) for q in (0.5, 0.99, 1.0))
    return {
        "count": len(chunks),
        "checkpoint": chunks[0].checkpoint,
        "horizon": len(chunks[0].actions),
        "executed": chunks[0].executed,
        "inference_ms": {"median": median, "p99": high, "max": worst},
    }


def _commands(trial: Trial) -> dict[str, dict[str, int]]:
    """By topic, how many commands of each kind."""
    kinds = {name: Counter(c.kind.name for c in trial.records(Command, f"command/{name}")) for name in
             ("requested", "sent", "applied")}  # fmt: skip
    return {name: dict(count) for name, count in kinds.items() if count}


def _episode(trial: Trial) -> dict[str, Any]:
    """How the trial stood when it was over; the record goes on until the arm is disarmed."""
    told = sorted(trial.records(Episode, "episode"), key=lambda episode: episode.step)
    if not told:
        return {}
    end = next((e for e in told if e.success or e.terminated or e.truncated), told[-1])
    return {"seed": end.seed, "control_steps": end.step, "terminated": end.terminated, "truncated": end.truncated}


def _safety(trial: Trial) -> dict[str, Any]:
    """Every change of state with its reason, and how many commands were changed or refused. Safety counts from when it
    was armed: at a record's begin its numbers are the last trial's.
    """
    changes: list[dict[str, Any]] = []
    changed = refused = 0
    began, before = None, None
    for recorded in trial.messages("safety/state"):
        report = safety_of(recorded.message)
        began, before = recorded.received if began is None else began, before or report
        changed += report.changed - (before.changed if report.changed >= before.changed else 0)
        refused += report.refused - (before.refused if report.refused >= before.refused else 0)
        before = report
        if not changes or (changes[-1]["state"], changes[-1]["check"]) != (report.state.name, report.check):
            changes.append(_change(report, (recorded.received - began) / SECOND))
    return {"changed": changed, "refused": refused, "states": changes}


def _change(report: SafetyReport, seconds: float) -> dict[str, Any]:
    return {
        "after": seconds, "state": report.state.name, "check": report.check, "reason": report.reason,
        "value": report.value, "limit": report.limit,
    }  # fmt: skip


def print_trial(about: dict[str, Any]) -> None:
    """As a table and a few lines."""
    from rich.table import Table

    lossy = ", LOSSY" if about["lossy"] else ""
    table = Table(title=f"{about['trial']}: {about['state']}{lossy}, {about['duration']:.1f} s")
    for column in ("topic", "type", "seen", "written", "dropped", "lost", "missing", "Hz"):
        table.add_column(column, justify="left" if column in ("topic", "type") else "right", no_wrap=True)
    for name, count in about["topics"].items():
        rate = "" if count["rate"] is None else f"{count['rate']:.1f}"
        numbers = ["" if count[k] is None else str(count[k]) for k in ("seen", "written", "dropped", "lost", "missing")]
        table.add_row(name, count["type"].rsplit("/", 1)[1], *numbers, rate)
    _print_whole(table)
    print("\n".join(_lines(about)))


def _print_whole(table: Any) -> None:
    """However narrow the terminal is: names are for copying, so rather a long line than two."""
    from rich.console import Console

    wide = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, wide)).print(table)


def print_trials(described: list[dict[str, Any]]) -> None:
    """A line for each of several, and how many succeeded."""
    from rich.table import Table

    table = Table()
    for column in ("trial", "seed", "success", "control steps", "s", "chunks", "changed", "refused", "stopped by", ""):
        table.add_column(column, justify="left" if column in ("trial", "success", "stopped by", "") else "right")
    for about in described:
        safety = about["safety"]
        stops = ", ".join(dict.fromkeys(state["check"] for state in safety["states"] if state["state"] == "STOPPED"))
        steps, seed = about["episode"].get("control_steps", ""), "" if about["seed"] is None else about["seed"]
        table.add_row(
            about["trial"], str(seed), _success(about), str(steps), f"{about['duration']:.1f}",
            str(about["chunks"]["count"]), str(safety["changed"]), str(safety["refused"]), stops,
            "LOSSY" if about["lossy"] else "",
        )  # fmt: skip
    _print_whole(table)
    print("changed, refused: commands that safety shortened to its limits, or did not let through")
    if any(about["lossy"] for about in described):
        print("LOSSY: messages are missing in the record; `d2ppo trials show` of that trial says which, replay and "
              "export whether it matters")  # fmt: skip
    counted = [about for about in described if not about["ended"] and "void" not in about["outcome"]]
    good = sum(bool(about["success"]) for about in counted)
    rest = len(described) - len(counted)
    if counted:
        left_out = f"; {rest} of unknown outcome or void are not counted" if rest else ""
        print(f"success {wilson(good, len(counted))} ({good}/{len(counted)} trials{left_out})")


def _success(about: dict[str, Any]) -> str:
    return "yes" if about["success"] else f"unknown ({about['ended']})" if about["ended"] else "no"


def _judged(outcome: dict[str, Any]) -> str:
    """What a person said of the trial."""
    if "judged" not in outcome:
        return ""
    void = f"void: {outcome['void']}" if "void" in outcome else ""
    return f" ({'; '.join(part for part in ('as a person judged', void, outcome.get('notes', '')) if part)})"


def _lines(about: dict[str, Any]) -> list[str]:
    chunks, safety = about["chunks"], about["safety"]
    success = _success(about) + _judged(about["outcome"])
    lines = [f"success: {success}; seed {about['seed']}; {about['episode'].get('control_steps', 'no')} control steps"]
    if chunks["count"]:
        took = chunks["inference_ms"]
        lines.append(
            f"chunks: {chunks['count']} of {chunks['horizon']} steps, {chunks['executed']} executed, by policy "
            f"{chunks['checkpoint'][:12]}; inference {took['median']:.1f} ms, 99 % {took['p99']:.1f} ms"
        )
    for name, kinds in about["commands"].items():
        lines.append(f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    lines.append(f"safety: {safety['changed']} commands changed, {safety['refused']} refused")
    lines += [f"  {s['after']:7.2f} s {s['state']} {s['check']} {s['reason']}".rstrip() for s in safety["states"]]
    return lines
