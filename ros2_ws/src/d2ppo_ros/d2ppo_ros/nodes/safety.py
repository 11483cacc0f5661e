"""The safety monitor's node: the last one before the robot. See `d2ppo_ros.safety`.

It knows nothing of the policy. Commands are judged where they arrive; a thread of its own looks at everything that is a
matter of time. Its state is published at every change and as its heartbeat: the robot stops when that falls silent.
"""

from __future__ import annotations

import sys
import threading
import time
from functools import partial

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Empty, String
from std_srvs.srv import Trigger

from .. import codec, decoding, topics
from ..contracts import RobotContract, parse
from ..parameters import declare
from ..records import ArmState, Command, RobotState, SafetyReport, State
from ..runtime import DeadlineLoop, Listener, run, speaker
from ..safety.cameras import changed_options, image_facts
from ..safety.monitor import SafetyMonitor
from ..safety.settings import settings_class
from ..trace import Trace

TICKS = 100.0  # Hz
HEARTBEAT = 0.05  # s: a quarter of the lease that the robot gives


class SafetyNode(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("safety")
        profile = str(self.declare_parameter("profile", "sim").value)
        self.lockstep = bool(self.declare_parameter("lockstep", False).value)
        self.settings = declare(self, settings_class(profile, self.lockstep))
        self._lock, self._trace = threading.RLock(), Trace("safety")
        self._monitor: SafetyMonitor | None = None  # until the robot has said what it is
        self._changed: dict[str, dict[str, tuple[float, float]]] = {}  # by camera: options that somebody else set
        self._said: tuple[State, str] | None = None
        self._now, self._beat = 0, 0.0
        self._say_sent = speaker(self, Command, topics.SENT, topics.EVERY)
        self._say_state = speaker(self, SafetyReport, topics.SAFETY, topics.REPORT)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", topics.EVERY)
        self._listen()
        calls = {topics.ARM_SAFETY: self._arm, topics.REARM: self._rearm, topics.DISARM: self._disarm,
                 topics.ESTOP_CALL: self._estop}  # fmt: skip
        for name, call in calls.items():
            self.create_service(Trigger, name, partial(self._on_call, call))
        self.create_timer(1.0, self._report)
        self._loop = DeadlineLoop(TICKS, self._tick, "ticks")
        self._loop.start()

    def _listen(self) -> None:
        listener = Listener(self)
        listener.hear_message(String, topics.CONTRACT, self._on_contract, topics.LATCHED)
        listener.hear(Command, topics.REQUESTED, self._on_command, topics.EVERY)
        listener.hear(RobotState, topics.STATE, self._on_state, topics.EVERY)
        for number in range(2):  # a robot with one arm never speaks on the second
            listener.hear(ArmState, topics.ARM.format(number), partial(self._on_arm, number), topics.EVERY)
        for camera in self.settings.cameras:
            listener.hear_message(Image, topics.IMAGE.format(camera), partial(self._on_image, camera), topics.NEWEST)
            listener.hear_message(String, topics.SETUP.format(camera), partial(self._on_setup, camera), topics.LATCHED)
        listener.hear_message(Empty, topics.ESTOP, lambda _: self._stop("emergency stop"), topics.EVERY)
        listener.hear_message(Bool, topics.OPERATOR, self._on_operator, topics.EVERY)

    def now(self) -> int:
        """ns: the node's clock; in lockstep the newest state's stamp."""
        return self._now if self.lockstep else self.get_clock().now().nanoseconds

    # --- what is heard ------------------------------------------------------------------------------------------------

    def _on_contract(self, message: String) -> None:
        contract = parse(RobotContract, message.data, topics.CONTRACT)
        with self._lock:
            if self._monitor is None or contract.action != self._monitor.spec:
                self._monitor = SafetyMonitor(self.settings, contract.action, self.now())
                self._set_up()

    def _on_command(self, command: Command) -> None:
        self._trace.mark("heard", command.sequence)
        with self._lock:
            if self._monitor is None:
                return
            if self.lockstep:
                self._now = max(self._now, command.stamp)
            answer = self._monitor.on_command(command, self.now())
            self._trace.mark("sent", command.sequence)
            self._say_sent(answer)
            self._tell()

    def _on_state(self, state: RobotState) -> None:
        with self._lock:
            if self._monitor is None:
                return
            if self.lockstep:
                self._now = max(self._now, state.stamp)
            self._monitor.on_state(state, self.now())

    def _on_arm(self, number: int, arm: ArmState) -> None:
        with self._lock:
            if self._monitor and number < len(self._monitor.arms):
                self._monitor.on_arm(arm, self.now(), number)

    def _on_image(self, camera: str, message: Image) -> None:
        facts = image_facts(camera, decoding.stamp_of(message), decoding.picture_of(message)[0])
        with self._lock:
            if self._monitor:
                self._monitor.on_image(facts, self.now())

    def _on_setup(self, camera: str, message: String) -> None:
        """What formed the pictures, as the camera's driver reads it back: latched, so it may come before the robot."""
        with self._lock:
            self._changed[camera] = changed_options(message.data)
            self._set_up()

    def _set_up(self) -> None:
        for camera, changed in self._changed.items():
            if self._monitor:
                self._monitor.cameras[camera].set_up(changed)

    def _on_operator(self, message: Bool) -> None:
        with self._lock:
            if self._monitor:
                self._monitor.on_operator(message.data, self.now())

    # --- what is asked ------------------------------------------------------------------------------------------------

    def _on_call(self, call, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            if self._monitor is None:
                response.message = "no robot has stated its side of the contract yet"
            else:
                response.success, response.message = call(self._monitor)
            self._tell()
        self.get_logger().info(response.message)
        return response

    def _arm(self, monitor: SafetyMonitor) -> tuple[bool, str]:
        return monitor.arm(self.now())

    def _rearm(self, monitor: SafetyMonitor) -> tuple[bool, str]:
        return monitor.rearm(self.now())

    def _disarm(self, monitor: SafetyMonitor) -> tuple[bool, str]:
        monitor.disarm(self.now(), "disarmed by hand")
        return True, "disarmed"

    def _estop(self, monitor: SafetyMonitor) -> tuple[bool, str]:
        self._stop("emergency stop")
        return True, "stopped"

    def _stop(self, why: str) -> None:
        with self._lock:
            if self._monitor:
                self._monitor.stop(self.now(), why)
                self._forward(self._monitor.tick(*self._times()))
                self._tell()

    # --- time ---------------------------------------------------------------------------------------------------------

    def _times(self) -> tuple[int, int]:
        """This node's time and the steady clock's; in lockstep there is only one."""
        return (self._now, self._now) if self.lockstep else (self.now(), time.monotonic_ns())

    def _tick(self) -> None:
        self._trace.mark("tick", self._loop.late)
        with self._lock:
            if self._monitor:
                self._forward(self._monitor.tick(*self._times()))
            self._tell()

    def _forward(self, command: Command | None) -> None:
        if command is not None:
            self._say_sent(command)

    def _tell(self) -> None:
        """Say how it stands where that is new, or is due."""
        report = self._monitor.report(self.now()) if self._monitor else None
        report = report or SafetyReport(self.now(), State.DISARMED, self.settings.profile, reason="no robot is heard")
        said, now = (report.state, report.reason), time.monotonic()
        if said != self._said or now - self._beat >= HEARTBEAT:
            if self._said and said[0] != self._said[0]:
                self.get_logger().info(f"{self._said[0].name} -> {said[0].name}" + (f": {said[1]}" if said[1] else ""))
            self._said, self._beat = said, now
            self._say_state(report)

    def _report(self) -> None:
        """Counts and warnings, for whoever watches."""
        with self._lock:
            if self._monitor is None:
                return
            counts = {**self._monitor.counts, "ticks": self._loop.ticks, "missed deadlines": self._loop.missed}
            warnings = [finding.text for finding in self._monitor.warnings.values()]
        level = DiagnosticStatus.WARN if warnings else DiagnosticStatus.OK
        values = [KeyValue(key=str(name), value=str(count)) for name, count in counts.items()]
        status = DiagnosticStatus(level=level, name="safety", message="; ".join(warnings), values=values)
        stamp = self.get_clock().now().nanoseconds
        self._diagnostics.publish(DiagnosticArray(header=codec.header(stamp), status=[status]))

    def close(self) -> None:
        """The last word is a stop."""
        self._loop.stop()
        self._stop("the safety node ends")
        self._trace.write()


def main() -> int:
    return run(SafetyNode)


if __name__ == "__main__":
    sys.exit(main())
