"""The real system behind the desk: its processes, and the operator's node that speaks with them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from d2ppo_interfaces.action import RunTrial

from d2ppo_core.errors import UserError

from .. import graph, topics
from ..executor.executor import Executor
from ..executor.settings import ExecutorSettings
from ..records import State
from ..scenarios import parse
from .operator import Operator
from .options import Chosen
from .policies import Curtain, Policy
from .processes import Processes
from .system import Ended, Status, Trouble

UP = 120.0  # s until all nodes but the policy's must be there
LOADED = 120.0  # s until a policy must be active
RESTING = ("policy", "recorder")  # nodes that are not waited for when the system comes up


def build(chosen: Chosen, policies: list[Policy], records: Path) -> graph.System:
    """The processes: those of `d2ppo up`, with nobody who arms by himself, and a switch that the desk holds."""
    words = [*chosen.system, f"checkpoint={policies[0].path}", f"record={records}", "trials=0"]
    options = parse(chosen.run.system, words)
    system = graph.system(chosen.run.system, options)
    for policy in policies:
        _check_mode(options, policy)
    own = {"trial": {"arm": False}}
    if chosen.run.lease:
        own["safety"] = {"operator_stop": chosen.run.lease}
    changed = [replace(p, parameters={**p.parameters, **own.get(p.name, {})}) for p in system.processes]
    return replace(system, processes=changed)


def _check_mode(options: Any, policy: Policy) -> None:
    """A policy that the executor would refuse is refused now, not in the middle of a session."""
    try:
        Executor(ExecutorSettings(mode=options.executor), policy.spec.action, policy.spec.horizon,
                 policy.spec.executed)  # fmt: skip
    except UserError as error:
        raise UserError(f"{policy.path}: {error}") from error


class Rig:
    """See the module; what it offers is `system.Rig`."""

    def __init__(self, system: graph.System, chosen: Chosen, curtain: Curtain, log: Path, lock: int,
                 reachable: Callable[[], bool]) -> None:  # fmt: skip
        self._closed = False
        self.simulated = chosen.run.system == "sim"
        self._limit = float(getattr(parse(chosen.run.system, chosen.system), "max_duration", 0.0))
        self._processes = Processes(system, log, curtain, lock)
        self._operator = Operator(system.environment, reachable if chosen.run.lease else None)
        self._scratch = tempfile.TemporaryDirectory(prefix="d2ppo-trials-")  # readable by nobody else

    def up(self) -> None:
        """Start every node but the policy's, and wait until they are there."""
        for name in self._processes.wanted:
            if name != "policy":
                self._processes.start(name)
        wanted = {name for name in self._processes.wanted if name not in RESTING}
        self._wait(lambda: wanted <= set(self._operator.node.get_node_names()) and self._operator.safety, UP,
                   "the nodes do not come up")  # fmt: skip

    def _wait(self, done: Callable[[], Any], seconds: float, why: str) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            self._check()
            if time.monotonic() > deadline:
                raise Trouble(f"{why} within {seconds:.0f} s; nodes.log may say why")
            time.sleep(0.05)

    def _check(self) -> None:
        """Raises where what one waits for can no longer come."""
        if self._closed:
            raise Trouble("the program is ending")
        if ended := self._processes.ended():
            raise Trouble(f"the node {ended[0]} has ended ({ended[1]})")

    def load(self, policy: Policy) -> None:
        """End the policy's process and start it with another checkpoint: nothing of the last one is left.

        Its path is in a file that only this user may read, not on a command line that everybody sees.
        """
        self._processes.end("policy")
        self._operator.policy = None
        wanted = self._processes.wanted["policy"]
        wanted.parameters.pop("checkpoint", None)
        file = Path(self._scratch.name) / "policy.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": {"checkpoint": str(policy.path)}}}))
        self._processes.start("policy", [file])

        def active() -> bool:
            report = self._operator.policy
            return bool(report and report.state == "active" and report.checkpoint == policy.digest)

        heard = self._operator.safety and self._operator.robot()
        why = "" if heard else " (no robot is heard: does its driver run?)"
        try:
            self._wait(active, LOADED, f"the policy does not become active{why}")
        except Trouble:
            self._processes.end("policy")  # nobody waits for it any more
            raise
        finally:
            file.unlink()

    def reset(self, seed: int) -> None:
        """The simulator's start state."""
        self._operator.reset("", seed)

    def ready(self) -> None:
        """A `finish` from now on ends the trial that `run` will run."""
        self._operator.ready()

    def run(self, trial: str, seed: int, elapsed: Callable[[float], None]) -> Ended:
        """One trial, recorded, to its end."""
        goal = RunTrial.Goal(trial=trial, seed=seed, record=True, max_duration=self._limit)
        result, said = self._operator.run(goal, elapsed, self._check)
        events = [
            {"after": round(after, 3), "state": report.state.name, "check": report.check, "reason": report.reason}
            for after, report in said
        ]
        last = said[-1][1] if said else self._operator.safety
        counts = {"passed": last.passed, "changed": last.changed, "refused": last.refused} if last else {}
        return Ended(result.reason, bool(result.success), int(result.steps), round(float(result.duration), 3),
                     result.record, events, counts)  # fmt: skip

    def finish(self) -> None:
        """End the running trial; the arm is held."""
        self._operator.cancel()

    def stop(self) -> None:
        """Latched, at once."""
        self._operator.stop()

    def arm(self) -> str:
        """READY -> ARMED, or why not; empty: done."""
        return self._call(topics.ARM_SAFETY)

    def rearm(self) -> str:
        """STOPPED -> READY."""
        return self._call(topics.REARM)

    def disarm(self) -> str:
        """-> READY."""
        return self._call(topics.DISARM)

    def _call(self, name: str) -> str:
        done, message = self._operator.call(name)
        return "" if done else message

    def status(self) -> Status:
        """How everything stands now."""
        report, ended = self._operator.safety, self._processes.ended()
        safety = {
            "state": report.state.name if report else State.DISARMED.name, "check": report.check if report else "",
            "reason": report.reason if report else "the safety node is not heard",
            "age": round(time.monotonic() - self._operator.heard, 2) if report else None,
        }  # fmt: skip
        down = f"the node {ended[0]} has ended ({ended[1]}); end the program and resume the session" if ended else ""
        return Status(safety, self._operator.robot(), self._operator.cameras(), down)

    def picture(self, camera: str) -> Any:
        """Its newest picture (H, W, 3) and the time of that; None: there is none."""
        return self._operator.picture(camera)

    def close(self) -> None:
        """Stop all processes in order."""
        self._closed = True
        self._processes.stop()
        self._operator.close()
        self._scratch.cleanup()
