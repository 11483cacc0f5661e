"""A Franka arm, or two, on the robot's topics: the driver of `d2ppo_ros.robot` behind ROS, and nothing more.

The servo loop has a thread of its own and its own watchdog: it holds, stops and lets go without ROS. A robot that has
stopped itself is recovered by a person (`arm/recover`), never by this node.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, WrenchStamped
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from d2ppo_core.tasks import action_spec, load_task, observation_spec

from .. import codec, topics
from ..contracts import RobotContract
from ..parameters import declare
from ..records import SECOND, ArmState, Command, RobotState, SafetyReport
from ..robot.driver import Phase, robot_of
from ..robot.reading import oldest
from ..robot.settings import ArmSettings
from ..robot.stating import contract_of
from ..runtime import DeadlineLoop, Listener, run, speaker
from ..trace import Trace

REPEAT = 50_000_000  # ns after which a silent arm's fault is said again
MOVING = (Phase.TAKING, Phase.DRIVING)


class ArmNode(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("arm")
        self.settings = declare(self, ArmSettings)
        self.finished, self.code = threading.Event(), 0
        task = load_task(self.settings.task)
        contract = contract_of(self.settings, observation_spec(task), action_spec(task))
        self.driver = robot_of(self.settings, contract.action)
        self._trace, self._last, self._count = Trace("arm"), None, 0
        self._published = self._said = 0  # ns, steady clock: newest reading that was published; last publication
        self._fault, self._noted = "", False
        self._make_topics(contract)
        self.driver.start()
        self._servo = DeadlineLoop(self.settings.rate, self._serve, "servo")
        self._teller = DeadlineLoop(self.settings.publish_rate, lambda: self._or_end(self._tell), "states")
        for loop in (self._servo, self._teller):
            loop.start()

    def _make_topics(self, contract: RobotContract) -> None:
        arms = range(contract.action.arms)
        self._contract = self.create_publisher(String, topics.CONTRACT, topics.LATCHED)
        self._contract.publish(codec.text_msg(contract.model_dump_json()))
        self._say_state = speaker(self, RobotState, topics.STATE, topics.EVERY)
        self._say_arm = [speaker(self, ArmState, topics.ARM.format(n), topics.EVERY) for n in arms]
        self._say_applied = speaker(self, Command, topics.APPLIED, topics.EVERY)
        self._say_reference = speaker(self, Command, topics.REFERENCE, topics.EVERY)
        plain = {"joint_states": JointState, "ee_pose": PoseStamped, "wrench": WrenchStamped}
        self._plain = [
            {name: self.create_publisher(kind, f"{topics.ARM.format(n)}/{name}", topics.NEWEST)
             for name, kind in plain.items()} for n in arms
        ]  # fmt: skip
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", topics.EVERY)
        listener = Listener(self)
        listener.hear(Command, topics.SENT, self._on_command, topics.EVERY)
        listener.hear(SafetyReport, topics.SAFETY, lambda report: self.driver.heartbeat(report.state), topics.REPORT)
        self.create_service(Trigger, topics.RECOVER, self._on_recover)
        self.create_timer(1.0, self._report)

    def now(self) -> int:
        """ns of the node's clock."""
        return self.get_clock().now().nanoseconds

    # --- what is heard ------------------------------------------------------------------------------------------------

    def _on_command(self, command: Command) -> None:
        self._trace.mark("command", command.sequence)
        taken = self.driver.obey(command, self.now() - command.stamp)
        if taken is not None:
            self._last = taken
            self._trace.mark("applied", taken.sequence)
            self._say_applied(taken)

    def _on_recover(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """A person has looked, and wants the robot's errors gone. Nothing moves by it."""
        if self.driver.phase in MOVING:
            response.message = "the arm is being driven; disarm it first (service safety/disarm)"
            return response
        why = self.driver.recover()
        response.success, response.message = not why, why or "recovered; re-arm it to move (safety/rearm, safety/arm)"
        self.get_logger().info(response.message)
        return response

    # --- loops --------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """The servo loop: should it ever fail, the arms brake and the node ends."""
        self._trace.mark("tick", self._servo.late)
        self._or_end(self.driver.tick)

    def _or_end(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            for client in self.driver.clients:
                client.stop()
            self.get_logger().fatal(f"a loop failed, the arms are stopped: {error!r}")
            self.code = 1
            self.finished.set()
            raise

    def _tell(self) -> None:
        """What has been measured since the last time; a silent arm's fault is repeated."""
        steady, readings, offset = time.monotonic_ns(), self.driver.readings(), self.now() - time.monotonic_ns()
        newest = oldest(readings)
        self._note(self.driver.fault(steady))
        fresh = newest > self._published
        if not fresh and not (self._fault and steady - self._said > REPEAT):
            return
        self._said = steady
        arms = self.driver.arms(readings, (lambda at: at + offset) if fresh else (lambda at: steady + offset), steady)
        for number, arm in enumerate(arms):
            self._say_arm[number](arm)
        if fresh:
            self._published, self._count = newest, self._count + 1
            state = self.driver.state(readings, newest + offset, self._count)
            if state is not None:
                self._trace.mark("state", state.stamp)
                self._say_state(state)
                self._say_plain(state, arms)
        sent = self.driver.sent(steady + offset, self._last)
        if sent is not None:
            self._say_reference(sent)

    def _note(self, fault: str) -> None:
        if fault != self._fault or not self._noted:
            self._fault, self._noted = fault, True
            if fault:
                self.get_logger().warning(fault)
            else:
                self.get_logger().info("every arm can be driven")

    def _say_plain(self, state: RobotState, arms: list[ArmState]) -> None:
        """For everybody else's tools, where there are any."""
        for number, (plain, arm) in enumerate(zip(self._plain, arms, strict=True)):
            if not any(publisher.get_subscription_count() for publisher in plain.values()):
                continue
            message, fingers = codec.arm_msg(arm), state.values.get(f"robot{number}_gripper_qpos", [])
            plain["joint_states"].publish(codec.joints_msg(arm.stamp, number, arm.q, arm.dq, fingers))
            plain["ee_pose"].publish(PoseStamped(header=message.header, pose=message.pose))
            plain["wrench"].publish(WrenchStamped(header=message.header, wrench=message.wrench))

    def _report(self) -> None:
        """How it stands, once a second."""
        driver = self.driver
        values = {"phase": driver.phase.value, "stopped": driver.stopped, "held back": driver.changed,
                  "cycles": self._servo.ticks, "missed deadlines": self._servo.missed,
                  "longest gap between cycles in s": f"{driver.late / SECOND:.3f}"}  # fmt: skip
        for number, client in enumerate(driver.clients):
            rate = client.reading.success if client.reading else 0.0
            values |= {f"arm{number} connections": client.connections, f"arm{number} success rate": f"{rate:.3f}"}
        for number, hand in enumerate(driver.hands):
            values |= {f"hand{number} commands": hand.sent, f"hand{number} given up": hand.given_up}
        problems = [client.warning for client in driver.clients] + [hand.problem for hand in driver.hands]
        warning = "; ".join(filter(None, problems))
        level = DiagnosticStatus.ERROR if self._fault else DiagnosticStatus.WARN if warning else DiagnosticStatus.OK
        status = DiagnosticStatus(
            level=level, name="arm", message=self._fault or warning,
            values=[KeyValue(key=name, value=str(value)) for name, value in values.items()],
        )  # fmt: skip
        self._diagnostics.publish(DiagnosticArray(header=codec.header(self.now()), status=[status]))

    def close(self) -> None:
        """Hold, let go of the arms, and only then end."""
        self._teller.stop()
        self._servo.stop()
        self.driver.close()
        self._trace.write()


def main() -> int:
    return run(ArmNode)


if __name__ == "__main__":
    sys.exit(main())
