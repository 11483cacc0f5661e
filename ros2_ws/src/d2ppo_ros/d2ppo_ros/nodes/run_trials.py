"""Runs trials one after the other through the action `run_trial`, and says how they went: what `d2ppo up` ends with.

Everything it needs is asked of the other nodes; it ends when the last trial has.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from action_msgs.msg import GoalStatus
from d2ppo_interfaces.action import RunTrial
from rclpy.action import ActionClient
from rclpy.node import Node
from std_srvs.srv import Trigger

from d2ppo_core.files import write_json
from d2ppo_core.statistics import wilson

from .. import topics
from ..parameters import declare, parameter
from ..records import PolicyReport
from ..runtime import Listener, called, run

ENDED_WELL = ("success", "time")  # how a trial ends without a mishap


@dataclass(frozen=True)
class RunSettings:
    """Parameters of this node."""

    trials: int = parameter(1, "how many", low=1)
    first_seed: int = parameter(100000, "seed of the first trial; the others follow it", low=0, high=2**32 - 1)
    max_duration: float = parameter(0.0, "of each trial; 0: the trial node's", unit="s", low=0.0)
    record: bool = parameter(False, "record each trial")
    out: str = parameter("", "JSON file for the outcome of every trial")
    patience: float = parameter(60.0, "how long to wait until the policy is active", unit="s", low=1.0, high=600.0)


class RunTrialsNode(Node):
    """See the module."""

    asks = True  # other nodes, from a thread of its own

    def __init__(self) -> None:
        super().__init__("trials")
        self.settings = declare(self, RunSettings)
        self.finished, self.code, self.closing = threading.Event(), 1, False
        self._policy: PolicyReport | None = None
        self._rows: list[dict[str, Any]] = []
        Listener(self).hear(PolicyReport, topics.POLICY, self._on_policy, topics.REPORT)
        self._client = ActionClient(self, RunTrial, topics.RUN_TRIAL)
        self._disarm = self.create_client(Trigger, topics.DISARM)
        threading.Thread(target=self._guarded, daemon=True, name="trials").start()

    def close(self) -> None:
        """A signal has come, or the last trial was."""
        self.closing = True

    def _on_policy(self, report: PolicyReport) -> None:
        self._policy = report

    def _guarded(self) -> None:
        try:
            self.code = self._run()
        except Exception as error:
            if not self.closing:  # while ROS goes down, what is asked of others fails in its own ways
                print(f"d2ppo: the trials ended: {error}", flush=True)
        finally:
            self.finished.set()

    def _run(self) -> int:
        """All trials; 0 if every one came to its own end."""
        options = self.settings
        deadline = time.monotonic() + options.patience
        while not (self._policy and self._policy.state == "active" and self._client.server_is_ready()):
            if time.monotonic() > deadline:
                said = f": {self._policy.error}" if self._policy and self._policy.error else ""
                raise TimeoutError(f"the policy or the trial node is not ready after {options.patience:g} s{said}")
            time.sleep(0.05)
        for seed in range(options.first_seed, options.first_seed + options.trials):
            begin = time.monotonic()
            result = self._one(seed)
            row = {"seed": seed, "success": bool(result.success), "reason": result.reason, "steps": int(result.steps),
                   "seconds": float(result.duration), "record": result.record}  # fmt: skip
            self._rows.append(row)
            self._save()
            took = f"{row['seconds']:.2f} s (took {time.monotonic() - begin:.1f} s)"
            print(f"trial {len(self._rows)}/{options.trials}  seed {seed}  {result.reason}  {row['steps']} steps  "
                  f"{took}  {row['record']}".rstrip(), flush=True)
            if result.reason not in ENDED_WELL:
                break
        _wait(self._disarm.call_async(Trigger.Request()))
        return self._report()

    def _one(self, seed: int) -> RunTrial.Result:
        options = self.settings
        goal = RunTrial.Goal(seed=seed, record=options.record, max_duration=float(options.max_duration),
                             trial=f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}")
        handle = _wait(called(self.executor, self._client.send_goal_async, goal))
        if not handle.accepted:
            raise RuntimeError("the trial node refused a trial: another one is running")
        answer = _wait(called(self.executor, handle.get_result_async))
        if answer.status == GoalStatus.STATUS_ABORTED and not answer.result.reason:
            raise RuntimeError("a trial was aborted without a reason")
        return answer.result

    def _save(self) -> None:
        """After every trial: who is interrupted keeps those before."""
        if self.settings.out:
            good = sum(row["success"] for row in self._rows)
            write_json(self.settings.out, {"trials": self._rows, "successes": good})

    def _report(self) -> int:
        good = sum(row["success"] for row in self._rows)
        print(f"success {wilson(good, len(self._rows))} ({good}/{len(self._rows)} trials)", flush=True)
        if self.settings.out:
            print(self.settings.out, flush=True)
        return 0 if all(row["reason"] in ENDED_WELL for row in self._rows) else 1


def _wait(future: Any) -> Any:
    """The result of what another thread spins for."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    done.wait()
    return future.result()


def main() -> int:
    return run(RunTrialsNode)


if __name__ == "__main__":
    sys.exit(main())
