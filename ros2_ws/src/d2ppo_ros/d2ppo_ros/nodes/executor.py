"""The executor: asks the policy for chunks and sends their steps when they are due. See `d2ppo_ros.executor`.

It reads the policy's and the robot's contracts from their latched topics, so that it needs none of its own. In real
time a thread of its own ticks at absolute deadlines; the callbacks only put what they hear into place. In lockstep
every state of the robot is one tick. It moves only while the safety node says that commands pass.
"""

from __future__ import annotations

import sys
import threading
import time

from d2ppo_interfaces.srv import StartTrial
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from d2ppo_core.contract import PolicySpec
from d2ppo_core.errors import UserError

from .. import codec, topics
from ..contracts import RobotContract, parse
from ..executor.executor import Executor
from ..executor.lease import Lease
from ..executor.settings import ExecutorSettings, nanoseconds
from ..parameters import declare
from ..records import ArmState, Chunk, ChunkRequest, Command, Kind, RobotState, SafetyReport, State
from ..runtime import DeadlineLoop, Listener, run, speaker
from ..trace import Trace

REPEAT = 0.5  # s of real time after which lockstep sends a request again
DRIFT = 500_000  # ns: how far ticks may be from the clock before they follow it
MOVING = (State.ARMED, State.HOLD)


class ExecutorNode(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("executor")
        self.settings = declare(self, ExecutorSettings)
        if self.settings.lockstep_latency:
            raise UserError(
                "executor: lockstep_latency is for `d2ppo bench chunks`; through the nodes try a slow policy in real "
                "time, with the policy's parameter delay"
            )
        self.finished, self.code = threading.Event(), 0
        self._lock = threading.RLock()
        self._spec: PolicySpec | None = None
        self._robot: RobotContract | None = None
        self._executor: Executor | None = None
        self._state: RobotState | None = None  # the newest
        self._safety = State.DISARMED
        self._waiting: tuple[str, int] | None = None  # a trial (name, seed) that begins with its first state
        self._lease = Lease(0 if self.settings.lockstep else nanoseconds(self.settings.trial_lease))
        self._trace = Trace("executor")
        self._sent: Command | None = None
        self._asked = 0.0  # when the last request was sent, by the steady clock
        self._make_topics()
        self._loop = DeadlineLoop(self.settings.rate, self._tick_now, "ticks")
        if self.settings.lockstep:
            self.create_timer(REPEAT, self._repeat)
        else:
            self._loop.start()

    def _make_topics(self) -> None:
        self._say_command = speaker(self, Command, topics.REQUESTED, topics.EVERY)
        self._say_request = speaker(self, ChunkRequest, topics.REQUEST, topics.EVERY)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", topics.EVERY)
        listener = Listener(self)
        listener.hear_message(String, topics.POLICY_CONTRACT, self._on_policy, topics.LATCHED)
        listener.hear_message(String, topics.CONTRACT, self._on_robot, topics.LATCHED)
        listener.hear(SafetyReport, topics.SAFETY, self._on_safety, topics.REPORT)
        listener.hear(RobotState, topics.STATE, self._on_state, topics.EVERY)
        listener.hear(Chunk, topics.CHUNK, self._on_chunk, topics.EVERY)
        for number in range(2):  # a robot with one arm never speaks on the second
            listener.hear(
                ArmState, topics.ARM.format(number), lambda arm, n=number: self._on_arm(n, arm), topics.EVERY
            )
        listener.hear_message(String, topics.TRIAL, self._on_trial, topics.EVERY)
        self.create_service(StartTrial, topics.START, self._on_start)
        self.create_service(Trigger, topics.STOP, self._on_stop)
        self.create_timer(1.0, self._report)

    # --- what is heard ------------------------------------------------------------------------------------------------

    def _on_policy(self, message: String) -> None:
        self._spec = parse(PolicySpec, message.data, topics.POLICY_CONTRACT)
        self._build()

    def _on_robot(self, message: String) -> None:
        self._robot = parse(RobotContract, message.data, topics.CONTRACT)
        self._build()

    def _build(self) -> None:
        """As soon as both sides are known; a mode that the policy does not allow ends the process."""
        if self._spec is None or self._robot is None:
            return
        with self._lock:
            try:
                self._executor = Executor(
                    self.settings, self._robot.action, self._spec.horizon, self._spec.executed
                )
            except UserError as error:
                self.get_logger().error(str(error))
                self.code = 2
                self.finished.set()

    def _on_safety(self, report: SafetyReport) -> None:
        with self._lock:
            self._safety = report.state
            if report.state not in MOVING and self._executor and self._executor.running:
                self._end(f"safety: {report.reason or report.state.name.lower()}")

    def _on_state(self, state: RobotState) -> None:
        with self._lock:
            self._state = state
            if self._executor is None:
                return
            self._executor.on_state(state)
            if self._waiting and state.trial in ("", self._waiting[0]):
                (trial, seed), self._waiting = self._waiting, None
                self._executor.start(trial, seed, state, self._now())
            if self.settings.lockstep and self._executor.running:
                self._answer(state)

    def _answer(self, state: RobotState) -> None:
        """Lockstep: a state that comes again gets the same command again."""
        if self._pending():
            self._tick(state.stamp)
        else:
            self._say_command(self._sent)

    def _on_arm(self, number: int, arm: ArmState) -> None:
        with self._lock:
            if self._executor:
                self._executor.on_arm(number, arm)
                if self.settings.lockstep and self.settings.poses and self._pending():
                    self._tick(self._state.stamp)

    def _on_chunk(self, chunk: Chunk) -> None:
        self._trace.mark("chunk", chunk.stamp)
        with self._lock:
            if self._executor is None:
                return
            self._executor.on_chunk(chunk, self._now())
            if self.settings.lockstep and self._pending():
                self._tick(self._state.stamp)

    def _pending(self) -> bool:
        """In lockstep: whether the newest state has got no command yet."""
        answered = self._sent is not None and self._sent.stamp == self._state.stamp if self._state else True
        return bool(self._executor and self._executor.running and not answered)

    # --- trials -------------------------------------------------------------------------------------------------------

    def _on_start(self, request: StartTrial.Request, response: StartTrial.Response) -> StartTrial.Response:
        """Begin with the trial's first state."""
        with self._lock:
            response.message = self._obstacle()
            response.success = not response.message
            if response.success:
                self._waiting = request.trial, request.seed
                self._lease.begin(request.trial, time.monotonic_ns())
                if self._state is not None and self.settings.lockstep:
                    self._on_state(self._state)  # time stands still: there is no other state to come
        return response

    def _on_trial(self, message: String) -> None:
        with self._lock:
            self._lease.renew(message.data, time.monotonic_ns())

    def _obstacle(self) -> str:
        """Why no trial can begin now, as a sentence; empty: it can."""
        if self._executor is None:
            return "the executor has not heard the contracts of policy and robot; are both nodes active?"
        if self._executor.running or self._waiting:
            return f"trial '{self._executor.asking.trial}' is running; stop it first"
        if self._safety not in MOVING:
            return f"the safety node is {self._safety.name}; arm it first (service {topics.ARM_SAFETY})"
        return ""

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._end("the trial was ended")
        response.success = True
        return response

    def _end(self, reason: str) -> None:
        self._waiting = None
        if self._executor:
            self._executor.stop(reason)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        if self.settings.lockstep:
            return self._state.stamp if self._state else 0
        return self.get_clock().now().nanoseconds

    def _tick_now(self) -> None:
        self._trace.mark("tick", self._loop.late)
        with self._lock:
            if self._executor and self._executor.running and self._lease.over(time.monotonic_ns()):
                seconds = self.settings.trial_lease
                self._say_command(self._executor.abort(f"whoever runs the trial has been silent for {seconds:g} s"))
            self._tick(self._due())

    def _due(self) -> int:
        """The time that this tick is for, on the node's clock: whole periods after the one before.

        So a step that is due at a tick never waits for the next one because of jitter. The time is read anew where a
        trial has begun since then, and where the clocks have drifted apart by more than reading them is uncertain.
        """
        before, period = time.monotonic_ns(), self._loop.period
        now, reading = self._now(), time.monotonic_ns() - before
        due = now - (before - self._loop.due)
        seen = self._executor.now if self._executor else 0
        if due < seen <= now:
            return now
        snapped = seen + round((due - seen) / period) * period
        return snapped if abs(snapped - due) < DRIFT + reading else due

    def _tick(self, now: int) -> None:
        """One command, and the request that goes with it."""
        if self._executor is None:
            return
        command, request = self._executor.tick(now)
        if request is not None:
            self._trace.mark("request", request.stamp)
            self._asked = time.monotonic()
            self._say_request(request)
        if command is not None:
            self._sent = command
            if command.kind in (Kind.DELTA, Kind.POSE):
                self._trace.mark("command", command.sequence, command.observation)
                self._trace.mark("step", command.step, command.observation)
            self._say_command(command)

    def _repeat(self) -> None:
        """Lockstep: a request that was sent before the policy listened is sent again."""
        with self._lock:
            executor, waited = self._executor, time.monotonic() - self._asked
            if executor and executor.running and executor.in_flight is not None and waited > REPEAT:
                self._say_request(executor.in_flight)

    def _report(self) -> None:
        with self._lock:
            counts = vars(self._executor.counts) if self._executor else {}
            plain = {name: value for name, value in counts.items() if isinstance(value, (int, float))}
            plain |= {"ticks": self._loop.ticks, "missed deadlines": self._loop.missed}
        values = [KeyValue(key=key, value=str(value)) for key, value in plain.items()]
        status = DiagnosticStatus(level=DiagnosticStatus.OK, name="executor", values=values)
        stamp = self.get_clock().now().nanoseconds
        self._diagnostics.publish(DiagnosticArray(header=codec.header(stamp), status=[status]))

    def close(self) -> None:
        """Stop: the last word goes out before ROS does."""
        self._loop.stop()
        with self._lock:
            self._end("the executor ends")
            if self._executor:
                self._say_command(self._executor.tick(max(self._now(), self._executor.now))[0])
        self._trace.write()


def main() -> int:
    return run(ExecutorNode)


if __name__ == "__main__":
    sys.exit(main())
