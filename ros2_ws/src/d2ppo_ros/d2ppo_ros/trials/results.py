"""What came out: success of each policy with Wilson's interval, and the difference of each two, paired by start."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from d2ppo_core.files import atomic_path, write_json, write_text
from d2ppo_core.statistics import Interval, paired_difference, wilson

from .session import SUCCESS, VOID, Session, Trial

NAMES = ("results.json", "results.txt", "results.png")


@dataclass(frozen=True)
class Row:
    """One policy."""

    name: str
    digest: str
    successes: int
    trials: int
    void: int
    stops: int  # trials with a latched stop

    @property
    def rate(self) -> Interval | None:
        """Success with its interval; none without trials."""
        return wilson(self.successes, self.trials) if self.trials else None


@dataclass(frozen=True)
class Difference:
    """Two policies on the start states that both have run from: `second` minus `first`."""

    first: str
    second: str
    starts: int
    only_first: int  # start states from which only the first succeeded
    only_second: int
    interval: Interval


@dataclass(frozen=True)
class Results:
    """Of a whole session, or of what there is so far."""

    rows: list[Row]
    differences: list[Difference]
    complete: bool
    blind: str  # in words


def of(session: Session) -> Results:
    """Compute them; nobody may see them while the session is hidden."""
    rows = [_row(session, number) for number in range(len(session.plan.policies))]
    pairs = [_difference(session, a, b) for a, b in combinations(range(len(rows)), 2)]
    return Results(rows, [pair for pair in pairs if pair], session.complete, _blindness(session))


def _row(session: Session, policy: int) -> Row:
    about = session.plan.policies[policy]
    ran = [trial for trial in session.trials if trial.policy == policy]
    counted = [trial for trial in ran if trial.counts]
    stopped = sum(_stopped(trial) for trial in counted)
    return Row(
        about["name"], about["digest"], sum(trial.outcome == SUCCESS for trial in counted), len(counted),
        sum(trial.outcome == VOID for trial in ran), stopped,
    )  # fmt: skip


def _stopped(trial: Trial) -> bool:
    """Whether the safety node latched a stop during the trial, whoever or whatever asked for it."""
    return any(event.get("state") == "STOPPED" for event in (trial.ended or {}).get("safety", ()))


def _difference(session: Session, first: int, second: int) -> Difference | None:
    outcome = {(t.start, t.policy): t.outcome == SUCCESS for t in session.trials if t.counts}
    both = [start for start in range(len(session.plan.starts)) if {(start, first), (start, second)} <= outcome.keys()]
    if not both:
        return None
    one, other = ([outcome[start, policy] for start in both] for policy in (first, second))
    cells = Counter(zip(one, other, strict=True))
    names = [session.plan.policies[policy]["name"] for policy in (first, second)]
    return Difference(*names, len(both), cells[True, False], cells[False, True], paired_difference(one, other))


def _blindness(session: Session) -> str:
    if not session.plan.blind:
        return "not blind: the person who judged knew which policy ran"
    known, judged = None, 0  # what was judged by somebody who could know
    for event in session.events("reveal", "outcome"):
        if event["event"] == "outcome":
            judged += known is not None
        elif known is None:
            known = event["after"]
    if not judged and (known is None or known == session.total):
        return "blind: nobody was told which policy ran before all was done"
    return f"blind for the first {known} of {session.total} trials, then revealed; {judged} outcomes came after that"


def table(results: Results) -> str:
    """As text."""
    wide = max(len("policy"), *(len(row.name) for row in results.rows))
    lines = [f"{'policy':<{wide}}  success                 trials  void  stops"]
    for row in results.rows:
        rate = str(row.rate) if row.rate else "-"
        count = f"{row.successes}/{row.trials}"
        lines.append(f"{row.name:<{wide}}  {rate:<22}  {count:>6}  {row.void:>4}  {row.stops:>5}")
    return "\n".join([*lines, "", *_sentences(results)]) + "\n"


def _sentences(results: Results) -> list[str]:
    """The differences, and how all of it is to be read."""
    lines = [
        f"{pair.second} minus {pair.first}: {pair.interval.value:+.3f} [{pair.interval.low:+.3f}, "
        f"{pair.interval.high:+.3f}], paired by {pair.starts} start states (only {pair.second} succeeded from "
        f"{pair.only_second}, only {pair.first} from {pair.only_first})"
        for pair in results.differences
    ]
    blind = results.blind + ("" if results.complete else "; not complete")
    return [*lines, f"intervals are 95 %: Wilson's, and Agresti and Min's of paired differences; {blind}"]


def shown(results: Results) -> dict[str, Any]:
    """For the page: rows of a table, and sentences."""
    rows = [[row.name, str(row.rate or "-"), f"{row.successes}/{row.trials}", row.void, row.stops]
            for row in results.rows]  # fmt: skip
    return {"rows": rows, "sentences": _sentences(results), "text": table(results)}


def as_json(session: Session, results: Results) -> dict[str, Any]:
    """Everything, trial by trial."""
    policies = session.plan.policies
    return {
        "policies": [{**asdict(row), "success_rate": asdict(row.rate) if row.rate else None} for row in results.rows],
        "differences": [asdict(pair) for pair in results.differences],
        "complete": results.complete, "blind": results.blind, "seed": session.plan.seed,
        "trials": [
            {"trial": t.name, "start": t.start, "start_seed": session.plan.starts[t.start],
             "policy": policies[t.policy]["name"], "outcome": t.outcome, "reason": t.reason, "notes": t.notes,
             "ended": t.ended}
            for t in session.trials
        ],
    }  # fmt: skip


def write(session: Session, folder: Path) -> Results:
    """results.json, results.txt and results.png."""
    from .figure import draw

    results = of(session)
    write_json(folder / NAMES[0], as_json(session, results))
    write_text(folder / NAMES[1], table(results))
    with atomic_path(folder / NAMES[2]) as partial:
        partial.write_bytes(draw(results))
    return results
