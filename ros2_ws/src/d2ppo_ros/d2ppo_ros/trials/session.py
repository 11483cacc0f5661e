"""The protocol of a comparison, without clocks, robots or screens: what has happened, and what comes next.

There are S start states and P policies, and each start state is run with every policy. For one trial the start state is
set up first; then the policy is drawn among those that still lack a trial from this start state; then it runs; then a
person says how it went. A trial that is void counts for nothing, and its policy goes back among those to be drawn.

The draw follows from the session's seed, the start state and the number of the draw alone, so that it can be checked
afterwards; the file keeps a ticket of it, from which nobody reads the policy by chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from d2ppo_core.errors import UserError

from .journal import Event, Journal

FORMAT = 1
SUCCESS, FAILURE, VOID = "success", "failure", "void"
OUTCOMES = (SUCCESS, FAILURE, VOID)
INTERRUPTED = "the program ended during the trial"


def draw(seed: int, start: int, number: int, left: Sequence[int]) -> int:
    """Which of the policies that are left runs: each with the same chance; the same arguments, the same answer."""
    word = hashlib.sha256(f"{seed}/{start}/{number}".encode()).digest()
    return sorted(left)[int.from_bytes(word, "big") % len(left)]


def ticket(seed: int, start: int, number: int, digest: str) -> str:
    """What the file keeps of a draw."""
    return hashlib.sha256(f"{seed}/{start}/{number}/{digest}".encode()).hexdigest()[:16]


@dataclass
class Trial:
    """One draw and what became of it."""

    name: str  # says the start state and the number of the draw, not the policy
    start: int
    number: int  # which draw of this start state, from 0
    policy: int
    ended: dict[str, Any] | None = None  # how it came to its end: reason, record, safety events
    outcome: str = ""  # one of OUTCOMES, once a person has said so
    reason: str = ""  # why it is void
    notes: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is part of the comparison."""
        return self.outcome in (SUCCESS, FAILURE)


@dataclass(frozen=True)
class Plan:
    """What a session was begun with."""

    seed: int
    starts: tuple[int, ...]  # seed of each start state
    blind: bool
    policies: tuple[dict[str, str], ...]  # name, path, digest of each
    options: dict[str, Any] = field(default_factory=dict)  # of the command, for those who resume it


class Session:
    """A session as its file tells it. Every change is in the file before this object shows it."""

    def __init__(self, journal: Journal, plan: Plan | None = None) -> None:
        """A new session with this plan, or, without one, the session that the file holds."""
        self._journal, self.trials, self.reveals = journal, [], 0
        if plan is not None:
            if journal.events:
                raise UserError(f"{journal.path} holds a session already; go on with resume=true, or choose a run_dir")
            journal.append("session", format=FORMAT, **vars(plan))
        if not journal.events:
            raise UserError(f"{journal.path} holds no session that could be resumed; begin one without resume=true")
        self.plan = _plan(journal.events[0], journal.path)
        for event in journal.events[1:]:
            self._take(event)

    def events(self, *kinds: str) -> list[Event]:
        """Everything of these kinds that has happened."""
        return [event for event in self._journal.events if event["event"] in kinds]

    # --- what comes next ----------------------------------------------------------------------------------------------

    @property
    def path(self) -> Any:
        """Of the file."""
        return self._journal.path

    @property
    def total(self) -> int:
        """How many trials count in the end."""
        return len(self.plan.starts) * len(self.plan.policies)

    @property
    def done(self) -> int:
        """How many count already."""
        return sum(trial.counts for trial in self.trials)

    @property
    def pending(self) -> Trial | None:
        """The trial that is under way or waits for its outcome."""
        return self.trials[-1] if self.trials and not self.trials[-1].outcome else None

    @property
    def start(self) -> int | None:
        """The start state that is run now; None: all is done."""
        return next((start for start in range(len(self.plan.starts)) if self.left(start)), None)

    def left(self, start: int) -> list[int]:
        """The policies that still lack a trial from this start state."""
        ran = {trial.policy for trial in self.trials if trial.start == start and trial.counts}
        return [policy for policy in range(len(self.plan.policies)) if policy not in ran]

    @property
    def complete(self) -> bool:
        """Whether every policy has run from every start state."""
        return self.start is None and self.pending is None

    @property
    def hidden(self) -> bool:
        """Whether nobody may be told which policy is which."""
        return self.plan.blind and not self.reveals and not self.complete

    # --- what happens -------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """The start state is there."""
        self._write("setup", start=self.start)

    def draw(self, free: Any = lambda name: True) -> Trial:
        """Draw the policy of the next trial; `free(name)`: whether a record of this name can be made."""
        start = self.start
        if start is None or self.pending:
            raise UserError("no trial is to be drawn now; this is a mistake of the program")
        number = sum(trial.start == start for trial in self.trials)
        chosen = draw(self.plan.seed, start, number, self.left(start))
        name = base = f"start{start + 1:03d}-draw{number + 1}"
        again = 1
        while not free(name):  # a program killed between a record's begin and this line
            again += 1
            name = f"{base}-{again}"
        about = {} if self.plan.blind else {"policy": self.plan.policies[chosen]["name"]}
        self._write("draw", trial=name, start=start, number=number, ticket=self._ticket(start, number, chosen), **about)
        return self.trials[-1]

    def end(self, ended: dict[str, Any]) -> None:
        """The trial has come to its end."""
        self._write("end", trial=self._now().name, **ended)

    def judge(self, outcome: str, reason: str = "", notes: str = "") -> Trial:
        """A person says how the trial went."""
        trial = self._now()
        self._check(outcome, reason)
        self._write("outcome", trial=trial.name, outcome=outcome, reason=reason, notes=notes)
        return trial

    def interrupted(self) -> bool:
        """After a kill: void the trial that was drawn and never came to its end; whether there was one."""
        trial = self.pending
        if trial is None or trial.ended is not None:
            return False
        self._write("outcome", trial=trial.name, outcome=VOID, reason=INTERRUPTED, notes="")
        return True

    def correct(self) -> Trial:
        """Take the last trial's outcome back, so that it can be entered anew."""
        if self.pending or not self.trials:
            raise UserError("there is no outcome to correct")
        self._write("correct", trial=self.trials[-1].name)
        return self.trials[-1]

    def reveal(self) -> None:
        """From now on the policies' names are told."""
        self._write("reveal", after=self.done)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _ticket(self, start: int, number: int, policy: int) -> str:
        return ticket(self.plan.seed, start, number, self.plan.policies[policy]["digest"])

    def _now(self) -> Trial:
        if self.pending is None:
            raise UserError("no trial is under way; this is a mistake of the program")
        return self.pending

    @staticmethod
    def _check(outcome: str, reason: str) -> None:
        if outcome not in OUTCOMES:
            raise UserError(f"'{outcome}' is no outcome; choose one of {', '.join(OUTCOMES)}")
        if outcome == VOID and not reason.strip():
            raise UserError("a void trial needs a reason; write down what went wrong")

    def _write(self, event: str, **about: Any) -> None:
        self._take(self._journal.append(event, **about))

    def _take(self, event: Event) -> None:
        """What an event changes. An event that does not fit those before it says that the file was edited."""
        kind, line = event["event"], f"{self._journal.path}: '{event['event']}' of {event.get('trial', 'the session')}"
        try:
            if kind == "draw":
                self._take_draw(event)
            elif kind in ("end", "outcome", "correct"):
                trial = self.trials[-1]
                if trial.name != event["trial"]:
                    raise ValueError("another trial is under way")
                self._take_trial(kind, trial, event)
            elif kind == "reveal":
                self.reveals += 1
            elif kind != "setup":
                raise ValueError("there is no such event")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(f"{line} does not fit what came before ({error}); restore the file as it was") from error

    def _take_draw(self, event: Event) -> None:
        start, number = int(event["start"]), int(event["number"])
        if start != self.start or self.pending:
            raise ValueError("this start state was not due")
        chosen = draw(self.plan.seed, start, number, self.left(start))
        if event["ticket"] != self._ticket(start, number, chosen):
            raise ValueError("the draw is not that of the session's seed")
        self.trials.append(Trial(str(event["trial"]), start, number, chosen))

    def _take_trial(self, kind: str, trial: Trial, event: Event) -> None:
        if kind == "end":
            trial.ended = {name: value for name, value in event.items() if name not in ("event", "at", "trial")}
        elif kind == "correct":
            trial.ended = trial.ended or {}
            trial.outcome = trial.reason = ""
        else:
            self._check(event["outcome"], event["reason"])
            trial.outcome, trial.reason, trial.notes = event["outcome"], event["reason"], event["notes"]


def _plan(event: Event, path: Any) -> Plan:
    try:
        if event["event"] != "session" or event["format"] != FORMAT:
            raise ValueError("of another program or version")
        policies = tuple({key: str(policy[key]) for key in ("name", "path", "digest")} for policy in event["policies"])
        return Plan(int(event["seed"]), tuple(map(int, event["starts"])), bool(event["blind"]), policies,
                    dict(event["options"]))  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} begins with no session of ours ({error}); choose another run_dir") from error
