"""The operator's desk: what a person may do at each moment, and what then happens. Page and terminal are views of it.

    STARTING -> SETUP -> LOADING -> READY -> RUNNING -> JUDGE -> SETUP ... -> DONE

Whatever takes time is done by one worker, so that nothing happens twice at once. `stop` is outside of all that: it
takes no lock and waits for nobody. Nothing here arms, re-arms or starts by itself; disarming it does, after each trial.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from d2ppo_core.errors import UserError

from . import results, starts
from .attach import attach, attach_all
from .policies import Curtain, Policy
from .session import FAILURE, SUCCESS, VOID, Session, Trial
from .system import Ended, Rig, Trouble

STARTING, SETUP, LOADING, READY = "STARTING", "SETUP", "LOADING", "READY"
RUNNING, JUDGE, DONE, FAILED = "RUNNING", "JUDGE", "DONE", "FAILED"
SHOWN = 12  # trials in the list
LAST = 10.0  # s that a trial which is stopped has to come to its end
NOTES = 4000  # letters
PLAIN = ("notes", "phase", "can", "state", "check", "outcome")  # of a view: our own words, or the person's own


class Refused(Exception):
    """Why what a person asked for cannot be done now, in words."""


class Desk:
    """A session being run. `view` says how it stands, `act` does what a person asks for."""

    def __init__(self, session: Session, policies: list[Policy], rig: Rig, folder: Path, curtain: Curtain) -> None:
        self.session, self.rig = session, rig
        self._policies, self._folder, self._curtain = policies, folder, curtain
        self.phase, self.problem, self.step = STARTING, "", 0
        self._draft: dict[str, str] = {}
        self._elapsed = 0.0
        self._lock, self._worker = threading.RLock(), ThreadPoolExecutor(1, "desk")
        self.finished = threading.Event()
        self._acts: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "setup": self._set_up, "arm": self._arm, "rearm": self._rearm, "disarm": self._disarm,
            "start": self._start, "void": self._void, "success": self._finish, "failure": self._finish,
            "end": self._finish, "save": self._save, "correct": self._correct, "reveal": self._reveal,
            "quit": self._quit,
        }  # fmt: skip

    # --- for views ----------------------------------------------------------------------------------------------------

    def can(self, safety: str) -> list[str]:
        """What a person may ask for now, beside `stop`, which may always be asked for."""
        wanted = {
            SETUP: ["setup", *(["correct"] if self.session.trials else [])],
            READY: [*{"READY": ["arm"], "ARMED": ["start", "disarm"]}.get(safety, []), "void"],
            RUNNING: ["success", "failure", "end"],
            JUDGE: ["save"],
            DONE: ["correct"],
        }.get(self.phase, [])  # fmt: skip
        again = ["rearm"] if safety == "STOPPED" and self.phase not in (STARTING, RUNNING) else []
        shown = ["reveal"] if self.session.hidden and self.phase in (SETUP, FAILED) else []
        return [*wanted, *again, *shown, *(["quit"] if self.phase not in (LOADING, RUNNING) else [])]

    def view(self) -> dict[str, Any]:
        """Everything that is shown, as plain JSON."""
        status, session = self.rig.status(), self.session
        with self._lock:
            safety = str(status.safety["state"])
            trial = session.pending
            start = trial.start if trial else session.start
            made = {
                "step": self.step, "phase": self.phase, "can": self.can(safety), "done": session.done,
                "total": session.total, "start": start, "starts": len(session.plan.starts),
                "trial": trial.name if trial else "", "simulated": self.rig.simulated, "blind": session.plan.blind,
                "hidden": session.hidden, "elapsed": round(self._elapsed, 1), "draft": dict(self._draft),
                "problem": self.problem or status.down, "safety": dict(status.safety), "robot": status.robot,
                "cameras": status.cameras, "before": starts.cameras(self._folder, start, status.cameras), 
                "trials": [self._told(t) for t in session.trials[-SHOWN:]],
                "results": None if session.hidden or not session.done else results.shown(results.of(session)),
                "policy": self._name(trial) if trial and not session.hidden else "",
            }  # fmt: skip
        return self._clean(made)

    def before(self, camera: str) -> bytes | None:
        """What a camera saw when the start state that is due was first set up."""
        return starts.of(self._folder, self.session.start, camera)

    def _told(self, trial: Trial) -> dict[str, Any]:
        """A trial of the list."""
        ended = trial.ended or {}
        return {
            "trial": trial.name, "start": trial.start, "outcome": trial.outcome, "reason": trial.reason,
            "notes": trial.notes, "ended": ended.get("reason", ""), "seconds": ended.get("seconds"),
            "policy": "" if self.session.hidden else self._name(trial),
        }  # fmt: skip

    def _name(self, trial: Trial) -> str:
        return self.session.plan.policies[trial.policy]["name"]

    def _clean(self, value: Any) -> Any:
        """Texts of other programs may tell what nobody may know; those that a person wrote are left as they are."""
        self._curtain.drawn = self.session.hidden
        if isinstance(value, str):
            return self._curtain.hide(value)
        if isinstance(value, dict):
            return {key: part if key in PLAIN else self._clean(part) for key, part in value.items()}
        return [self._clean(part) for part in value] if isinstance(value, list) else value

    # --- what a person asks -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """At once, whatever else is going on."""
        self.rig.stop()

    def act(self, action: str, step: int, data: Mapping[str, Any]) -> None:
        """Do it, if it may be done now and `step` is what was shown: a second click on an old page does nothing.

        Raises:
            Refused: it cannot be done, and why.
        """
        safety = str(self.rig.status().safety["state"])
        with self._lock:
            if step != self.step:
                raise Refused("this has changed meanwhile; look again")
            if action not in self._acts or action not in self.can(safety):
                raise Refused(f"'{str(action)[:40]}' cannot be done now ({self.phase.lower()}, safety {safety})")
            self.problem = ""
            try:
                self._acts[action]({**data, "action": action})
            except (Trouble, UserError) as error:
                raise Refused(self._curtain.hide(str(error))) from error

    def begin(self) -> None:
        """Bring the system up, then go on where the session stands."""
        self._do(self._bring_up)

    def _bring_up(self) -> None:
        self.rig.up()
        self.session.interrupted()
        attach_all(self.session.trials, self.session.path)
        self._next()

    def _do(self, work: Callable[[], None]) -> None:
        """Work that takes time, by the one worker."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # whatever it was: a person must hear of it
                self._change(FAILED, str(error) or type(error).__name__)

        self._worker.submit(guarded)

    def _change(self, phase: str, problem: str = "") -> None:
        with self._lock:
            self.phase, self.problem, self.step = phase, problem, self.step + 1

    def _next(self, problem: str = "") -> None:
        """What the session needs next."""
        pending = self.session.pending
        if pending is not None:
            self._draft = _suggested(pending, self.rig.simulated)
            return self._change(JUDGE, problem)
        self._draft, self._elapsed = {}, 0.0
        start = self.session.start
        if start is None:
            if self.session.plan.blind and not self.session.reveals:
                self.session.reveal()  # whatever is corrected from now on is not blind
            self._curtain.drawn = False
            results.write(self.session, self._folder)
            return self._change(DONE, problem)
        if self.rig.simulated:
            self.rig.reset(self.session.plan.starts[start])
        return self._change(SETUP, problem)

    # --- each action; the lock is held --------------------------------------------------------------------------------

    def _set_up(self, _: Mapping[str, Any]) -> None:
        starts.keep(self._folder, self.session.start or 0, self.rig)
        self.session.set_up()
        trial = self.session.draw(lambda name: not (self._folder / "records" / name).exists())
        self._change(LOADING)
        self._do(lambda: self._load(trial))

    def _load(self, trial: Trial) -> None:
        try:
            self.rig.load(self._policies[trial.policy])
        except Trouble as error:
            why = self._curtain.hide(str(error))
            self.session.judge(VOID, f"the policy was not loaded: {why}")
            return self._next(why)
        return self._change(READY)

    def _arm(self, _: Mapping[str, Any]) -> None:
        self._asked(self.rig.arm())

    def _rearm(self, _: Mapping[str, Any]) -> None:
        self._asked(self.rig.rearm())

    def _disarm(self, _: Mapping[str, Any]) -> None:
        self._asked(self.rig.disarm())

    @staticmethod
    def _asked(refusal: str) -> None:
        if refusal:
            raise Refused(refusal)

    def _start(self, _: Mapping[str, Any]) -> None:
        trial = self.session.pending
        self._draft, self._elapsed = {}, 0.0
        self.rig.ready()
        self._change(RUNNING)
        self._do(lambda: self._run(trial))

    def _run(self, trial: Trial) -> None:
        seed = self.session.plan.starts[trial.start]
        try:
            ended = self.rig.run(trial.name, seed, lambda seconds: setattr(self, "_elapsed", seconds))
        except Trouble as error:
            ended = Ended(f"trouble: {error}", False)
        ended = replace(ended, reason=self._curtain.hide(ended.reason))
        with self._lock:
            self.session.end(asdict(ended))
            pressed, self._elapsed = self._draft.get("outcome", ""), ended.seconds
            self._next()
            if pressed:
                self._draft["outcome"] = pressed
        self.problem = self._disarmed() or self.problem

    def _finish(self, data: Mapping[str, Any]) -> None:
        """Success and failure end the trial, too; they are what is suggested then."""
        if data["action"] != "end":
            self._draft = {"outcome": data["action"]}
        self.rig.finish()

    def _void(self, data: Mapping[str, Any]) -> None:
        """Before it began."""
        self._judged(VOID, data)

    def _save(self, data: Mapping[str, Any]) -> None:
        self._judged(str(data.get("outcome", "")), data)

    def _judged(self, outcome: str, data: Mapping[str, Any]) -> None:
        reason, notes = (str(data.get(name, "")).strip()[:NOTES] for name in ("reason", "notes"))
        trial = self.session.judge(outcome, reason if outcome == VOID else "", notes)
        self._change(LOADING)
        self._do(lambda: self._after(trial))

    def _after(self, trial: Trial) -> None:
        problem = ""
        try:
            attach(trial, self.session.path)
        except UserError as error:
            problem = str(error)
        self._next(self._disarmed() or problem)

    def _disarmed(self) -> str:
        """Disarm; what went wrong with that."""
        try:
            return self.rig.disarm()
        except Trouble as error:
            return str(error)

    def _correct(self, _: Mapping[str, Any]) -> None:
        trial = self.session.correct()
        self._next()
        self._draft = {"outcome": "", "notes": trial.notes}

    def _reveal(self, _: Mapping[str, Any]) -> None:
        self.session.reveal()
        self._change(self.phase)

    def _quit(self, _: Mapping[str, Any]) -> None:
        self._change(self.phase)
        self.finished.set()

    def close(self) -> None:
        """Stop what moves, then the processes."""
        if self.phase == RUNNING:
            self.rig.stop()
            self.rig.finish()
            deadline = time.monotonic() + LAST  # its end is to be in the file
            while self.phase == RUNNING and time.monotonic() < deadline:
                time.sleep(0.02)
        self._worker.shutdown(wait=False, cancel_futures=True)
        self.rig.close()  # whatever is still waited for ends with it
        self._worker.shutdown(wait=True)


def _suggested(trial: Trial, simulated: bool) -> dict[str, str]:
    """What the page proposes: in the simulator what that saw; on a robot nothing, a person has seen it."""
    ended = trial.ended or {}
    if not simulated or ended.get("reason") not in ("success", "time"):
        return {"outcome": ""}
    return {"outcome": SUCCESS if ended.get("success") else FAILURE}
