"""Runs one trial from its start to its end: the action `run_trial`.

The order is: begin to record, put the simulator to the start that the seed names (a real robot has nobody who does
that: the operator has done it), let the executor begin, watch until success, time-out, a stop or a cancel, let the
executor end, end the record. Whatever happens on the way, the executor is told to end.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from d2ppo_interfaces.action import RunTrial
from d2ppo_interfaces.srv import StartRecording, StartTrial
from rcl_interfaces.srv import GetParameters
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from .. import codec, decoding, topics
from ..parameters import declare, parameter
from ..records import SECOND, Episode, Metadata, RobotState, SafetyReport, State
from ..runtime import DeadlineLoop, Listener, run

ALIVE = 20.0  # Hz: how often the executor is told that somebody runs the trial


@dataclass(frozen=True)
class TrialSettings:
    """Parameters of the trials' node."""

    simulated: bool = parameter(
        True, "a simulator, or a stand-in's stage, sets each trial up, and its word on success is believed"
    )
    max_duration: float = parameter(30.0, "of a trial whose goal does not say", unit="s", low=0.1, high=3600.0)
    arm: bool = parameter(False, "arm the safety node before a trial where it is ready; never after a stop")
    disarm: bool = parameter(False, "disarm it after each trial, so that the arm is let go of")
    patience: float = parameter(20.0, "how long another node may take to answer", unit="s", low=0.1, high=600.0)


POLICY_PARAMETERS = ("checkpoint", "weights", "steps", "seed", "threads", "device", "max_age", "lockstep")


class Failure(Exception):
    """Why a trial did not come to its own end, in words."""


class TrialNode(Node):
    """See the module."""

    asks = True  # other nodes, from the thread of a trial

    def __init__(self) -> None:
        super().__init__("trial")
        self.settings = declare(self, TrialSettings)
        self._newest: Episode | RobotState | None = None  # where the trial stands: a real robot has only its state
        self._safety: SafetyReport | None = None
        self._policy = ""
        self._busy = threading.Lock()
        self._trial = ""  # that is being run
        self._alive = self.create_publisher(String, topics.TRIAL, topics.EVERY)
        self._loop = DeadlineLoop(ALIVE, self._beat, "alive")
        self._loop.start()
        listener = Listener(self)
        record, topic = (Episode, topics.EPISODE) if self.settings.simulated else (RobotState, topics.STATE)
        listener.hear(record, topic, lambda newest: setattr(self, "_newest", newest), topics.EVERY)
        listener.hear(SafetyReport, topics.SAFETY, lambda report: setattr(self, "_safety", report), topics.REPORT)
        listener.hear_message(
            String, topics.POLICY_CONTRACT, lambda text: setattr(self, "_policy", text.data), topics.LATCHED
        )
        kinds = {
            topics.RESET: StartTrial, topics.START: StartTrial, topics.STOP: Trigger, topics.RECORD: StartRecording,
            topics.RECORD_END: Trigger, topics.ARM_SAFETY: Trigger, topics.DISARM: Trigger,
            topics.POLICY_PARAMETERS: GetParameters,
        }  # fmt: skip
        self._calls = {name: self.create_client(kind, name) for name, kind in kinds.items()}
        self._server = ActionServer(
            self, RunTrial, topics.RUN_TRIAL, self._execute,
            goal_callback=self._admit,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )

    def _admit(self, goal: RunTrial.Goal) -> GoalResponse:
        """One at a time; whoever is accepted has the place until `_thread` gives it back."""
        return GoalResponse.ACCEPT if self._busy.acquire(blocking=False) else GoalResponse.REJECT

    def _beat(self) -> None:
        """The executor stops where this falls silent."""
        if self._trial:
            self._alive.publish(codec.text_msg(self._trial))

    async def _execute(self, handle: Any) -> RunTrial.Result:
        """The action: the work is done in a thread, so that this node goes on hearing."""
        done: Future = Future(executor=self.executor)
        threading.Thread(target=self._thread, args=(handle, done), daemon=True, name="trial").start()
        return await done

    def _thread(self, handle: Any, done: Future) -> None:
        result = RunTrial.Result()
        try:
            self._run(handle, result)
        except Exception as error:  # whatever it was: who asked must get an answer
            result.success, result.reason = False, str(error) or type(error).__name__
        finally:
            self._busy.release()  # before the answer: the next goal may follow it at once
        if handle.is_cancel_requested:
            handle.canceled()
        elif result.success or result.reason == "time":
            handle.succeed()
        else:
            handle.abort()
        done.set_result(result)

    def _run(self, handle: Any, result: RunTrial.Result) -> None:
        goal = handle.request
        trial = goal.trial or time.strftime("trial-%Y%m%d-%H%M%S")
        limit = goal.max_duration or self.settings.max_duration
        begin, start, self._trial = 0, 0, trial
        try:
            if not self.settings.simulated or (self._safety and self._safety.state is State.STOPPED):
                self._armed()  # or says why not, before anything is recorded
            if goal.record:
                self._feedback(handle, "recording", 0.0)
                request = StartRecording.Request(trial=trial, metadata=json.dumps(self._about(goal.seed)))
                result.record = self._asked(topics.RECORD, request).path
            if self.settings.simulated:
                self._feedback(handle, "resetting", 0.0)
                answer = self._asked(topics.RESET, StartTrial.Request(trial=trial, seed=goal.seed))
                begin = decoding.nanoseconds(answer.start)
                self._armed()  # only now: a stand-in's arm is set up while nothing drives it
            start = self._first_state(begin)
            self._asked(topics.START, StartTrial.Request(trial=trial, seed=goal.seed))
            result.reason = self._watch(handle, trial, start, limit)
            result.success = result.reason == "success"
        finally:
            if start:
                result.duration, result.steps = (self._newest.stamp - start) / SECOND, int(self._newest.step)
            self._end(goal.record)
            self._trial = ""

    def _about(self, seed: int) -> Metadata:
        """What a record must say so that it can be replayed: the policy's contract and how its node runs it."""
        answer = self._answer(topics.POLICY_PARAMETERS, GetParameters.Request(names=list(POLICY_PARAMETERS)))
        values = [parameter_value_to_python(value) for value in answer.values]
        node = dict(zip(POLICY_PARAMETERS, values, strict=True))
        return {"seed": seed, "policy": json.loads(self._policy or "null"), "policy_node": node}

    def _end(self, recorded: bool) -> None:
        """Nothing of this may be left out because something before it failed."""
        disarm = (topics.DISARM,) if self.settings.disarm else ()
        for name in (topics.STOP, *disarm, *((topics.RECORD_END,) if recorded else ())):
            try:
                self._asked(name, Trigger.Request())
            except Failure as failure:
                self.get_logger().error(str(failure))

    def _armed(self) -> None:
        """Wait until commands pass; arm where the settings allow it and nothing is latched."""
        deadline = time.monotonic() + self.settings.patience
        while time.monotonic() < deadline:
            state = self._safety.state if self._safety else State.DISARMED
            if state is State.ARMED:
                return
            if state is State.STOPPED:
                raise Failure(f"the safety node has stopped: {self._safety.reason}; clear it and call {topics.REARM}")
            if state is State.READY and self.settings.arm:
                self._answer(topics.ARM_SAFETY, Trigger.Request())  # refused: it was ready a moment ago; once more
            elif state is State.READY:
                raise Failure(f"the safety node is not armed; call {topics.ARM_SAFETY}")
            time.sleep(0.02)
        raise Failure(f"the safety node does not become ready: {self._safety.reason if self._safety else 'not heard'}")

    def _first_state(self, begin: int) -> int:
        """Stamp of a state of the robot that is not older than `begin`."""
        deadline = time.monotonic() + self.settings.patience
        while time.monotonic() < deadline:
            if self._newest is not None and self._newest.stamp >= begin:
                return self._newest.stamp
            time.sleep(0.002)
        raise Failure("the robot's state is not heard")

    def _watch(self, handle: Any, trial: str, start: int, limit: float) -> str:
        """Until the trial is over: why."""
        told = quiet = time.monotonic()
        step = -1
        while True:
            newest = self._newest
            now, elapsed = time.monotonic(), (newest.stamp - start) / SECOND
            if newest.step != step:
                step, quiet = newest.step, now
            if now - told > 0.2:
                told = now
                self._feedback(handle, "running", elapsed)
            ours = isinstance(newest, Episode) and newest.trial == trial
            if ours and newest.success:
                return "success"
            if self._safety and self._safety.state not in (State.ARMED, State.HOLD):
                return f"safety: {self._safety.reason or 'disarmed'}"
            if handle.is_cancel_requested:
                return "cancelled"
            if elapsed >= limit or (ours and newest.truncated):
                return "time"
            if now - quiet > self.settings.patience:
                return "nothing moves any more: the robot's state stands still"
            time.sleep(0.005)

    def _feedback(self, handle: Any, phase: str, elapsed: float) -> None:
        step = self._newest.step if self._newest else 0
        handle.publish_feedback(RunTrial.Feedback(phase=phase, elapsed=float(elapsed), step=int(step)))

    def _asked(self, name: str, request: Any) -> Any:
        """Call a service; a refusal is a `Failure` with the other node's words."""
        response = self._answer(name, request)
        if not response.success:
            raise Failure(f"{name}: {response.message}")
        return response

    def _answer(self, name: str, request: Any) -> Any:
        """What a service answers to the trial's thread."""
        client, deadline = self._calls[name], time.monotonic() + self.settings.patience
        if not client.wait_for_service(timeout_sec=self.settings.patience):
            raise Failure(f"nobody offers the service {name}; is its node running?")
        answered = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(max(0.0, deadline - time.monotonic())):
            raise Failure(f"the service {name} does not answer")
        return future.result()

    def close(self) -> None:
        """Say no more."""
        self._loop.stop()


def main() -> int:
    return run(TrialNode)


if __name__ == "__main__":
    sys.exit(main())
