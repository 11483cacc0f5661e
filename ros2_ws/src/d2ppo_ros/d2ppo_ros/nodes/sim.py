"""The simulator as robot and cameras, on the robot's topics.

*lockstep*: one control step for each command that answers the newest state; time is simulated and goes on with the
commands alone, so a trial is the same every time. *realtime*: a servo loop follows the last command, as a driver does,
with its own watchdog; time is the node's clock. What can go wrong on a robot is put in by setting a parameter of
`Faults` while it runs (`ros2 param set /sim stuck_gripper true`).
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from d2ppo_interfaces.srv import StartTrial
from geometry_msgs.msg import PoseStamped, WrenchStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String

from d2ppo_core.envs import Step
from d2ppo_core.errors import UserError
from d2ppo_core.tasks import load_task
from d2ppo_sim.robot import SimulatedRobot

from .. import codec, topics
from ..contracts import RobotContract
from ..parameters import declare, merged, parameter
from ..records import SECOND, ArmState, Command, Episode, Kind, RobotState, SafetyReport
from ..runtime import DeadlineLoop, Listener, run, speaker
from ..safety.watchdog import Order, Watchdog
from ..servo import Servo
from ..trace import Trace
from .sim_faults import Faults, FaultyCameras, Pictures, after

STEP = SECOND // 20  # ns: a control step
PARTS = 5  # realtime: into how many parts the servo loop divides it
FIRST = SECOND  # ns: lockstep's first stamp; 0 would look like no time at all
PAUSE = SECOND  # ns of simulated time between two trials
REPEAT = 0.5  # s of real time after which lockstep says again what nobody answered


@dataclass(frozen=True)
class SimSettings:
    """Parameters of the simulator's node."""

    task: str = parameter("lift", "which task is simulated (d2ppo_core/conf/task)")
    limits: str = parameter("sim", "limits profile that the robot keeps to", choices=("sim", "robot"))
    lockstep: bool = parameter(False, "one step for each command, on a simulated clock, instead of real time")
    seed: int = parameter(100000, "episode that stands there before the first trial", low=0, high=2**32 - 1)
    camera_rate: float = parameter(20.0, "pictures a second in real time", unit="Hz", low=0.1, high=60.0)
    max_episode_steps: int = parameter(0, "control steps of a trial in lockstep; 0: the task's", low=0, high=100_000)


class SimNode(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("sim")
        self.settings, self.faults = declare(self, SimSettings), declare(self, Faults, changeable=True)
        self.add_on_set_parameters_callback(self._on_parameters)
        lockstep, task = self.settings.lockstep, load_task(self.settings.task)
        task = replace(task, max_episode_steps=self.settings.max_episode_steps or task.max_episode_steps)
        self.robot = SimulatedRobot(task, 1 if lockstep else PARTS, lockstep, self.settings.limits)
        self._lock, self._cameras, self._trace = threading.RLock(), FaultyCameras(self.settings.seed), Trace("sim")
        self._now, self._loops, self._order = FIRST, [], Order.DISARMED
        self._watchdog = Watchdog()
        self._announce()
        self._make_publishers()
        self._begin("", self.settings.seed)
        listener = Listener(self)
        listener.hear(Command, topics.SENT, self._on_command, topics.EVERY)
        listener.hear(SafetyReport, topics.SAFETY, self._on_safety, topics.REPORT)
        self.create_service(StartTrial, topics.RESET, self._on_reset)
        if lockstep:
            self._said = 0.0
            self.create_timer(REPEAT, self._repeat)
            return
        self._loops = [DeadlineLoop(20 * PARTS, self._serve, "servo")]
        if self.robot.observation.cameras:
            self._loops.append(DeadlineLoop(self.settings.camera_rate, self._film, "camera"))
        for loop in self._loops:
            loop.start()

    def _announce(self) -> None:
        """Latch this side of the contract."""
        lowdim, name = self.robot.observation.lowdim, f"simulated {self.settings.task}"
        contract = RobotContract(name=name, lowdim=lowdim, action=self.robot.action)
        self._contract = self.create_publisher(String, topics.CONTRACT, topics.LATCHED)
        self._contract.publish(codec.text_msg(contract.model_dump_json()))

    def _make_publishers(self) -> None:
        arms = range(self.robot.action.arms)
        self._say_state = speaker(self, RobotState, topics.STATE, topics.EVERY)
        self._say_arm = [speaker(self, ArmState, topics.ARM.format(n), topics.EVERY) for n in arms]
        kind = codec.MESSAGES[ArmState]
        self._truth = [self.create_publisher(kind, topics.TRUTH.format(n), topics.EVERY) for n in arms]
        self._say_episode = speaker(self, Episode, topics.EPISODE, topics.EVERY)
        self._say_applied = speaker(self, Command, topics.APPLIED, topics.EVERY)
        self._time = self.create_publisher(Clock, "/clock", topics.EVERY) if self.settings.lockstep else None
        # The same for everybody else's tools.
        plain = {"joint_states": JointState, "ee_pose": PoseStamped, "wrench": WrenchStamped}
        self._plain = [
            {name: self.create_publisher(kind, f"{topics.ARM.format(n)}/{name}", topics.NEWEST)
             for name, kind in plain.items()} for n in arms
        ]  # fmt: skip
        self._images = {
            camera.key: (
                camera,
                self.create_publisher(Image, topics.SOURCE.format(camera.name), topics.NEWEST),
                self.create_publisher(CameraInfo, topics.SOURCE_INFO.format(camera.name), topics.NEWEST),
            )
            for camera in self.robot.observation.cameras
        }

    def stamp(self) -> int:
        """ns: simulated time in lockstep, else the node's clock (with the fault that is put in)."""
        if self.settings.lockstep:
            return self._now
        return self.get_clock().now().nanoseconds + int(self.faults.clock_jump * SECOND)

    def _on_parameters(self, parameters: list[Any]) -> SetParametersResult:
        """Faults may be set while it runs."""
        try:
            self.faults = merged(self.faults, {p.name: p.value for p in parameters}, "sim")
        except UserError as error:
            return SetParametersResult(successful=False, reason=str(error))
        with self._lock:
            self.robot.stuck_gripper = self.faults.stuck_gripper
            self.robot.block(self.faults.blocked_arm)
        return SetParametersResult(successful=True)

    # --- trials -------------------------------------------------------------------------------------------------------

    def _on_reset(self, request: StartTrial.Request, response: StartTrial.Response) -> StartTrial.Response:
        with self._lock:
            if not 0 <= request.seed < 2**32:
                response.message = f"seed {request.seed} is not from 0 to 2**32 - 1"
                return response
            self._now += PAUSE
            self._begin(request.trial, request.seed)
            response.success, response.start = True, codec.time_msg(self.stamp())
            if self.settings.lockstep:
                self._tell(self._now)
        return response

    def _begin(self, trial: str, seed: int) -> None:
        self.robot.reset(seed)
        self._episode, self._parts = Episode(self.stamp(), trial, seed, 0), 0
        self._servo = Servo(self.robot.action)  # the grippers, too, are told nothing yet
        self._servo.hold(self._arms(self.stamp()))

    def _account(self, step: Step) -> None:
        """One more step of the trial; in real time, one more part of one."""
        old, self._parts = self._episode, self._parts + 1
        count = self._parts if self.settings.lockstep else self._parts // PARTS
        self._episode = replace(
            old, step=count, reward=old.reward + float(step.reward[0]), success=old.success or bool(step.success[0]),
            terminated=bool(step.terminated[0]), truncated=bool(step.truncated[0]),
        )  # fmt: skip

    # --- lockstep -----------------------------------------------------------------------------------------------------

    def _on_command(self, command: Command) -> None:
        self._trace.mark("command", command.sequence)
        with self._lock:
            if self.settings.lockstep:
                self._lockstep(command)
            else:
                self._obey(command)

    def _obey(self, command: Command) -> None:
        """Real time: follow it, if the watchdog lets it; holding is the servo loop's."""
        if self._watchdog.feed(command.kind, time.monotonic_ns()) is not Order.GO or command.kind is Kind.KEEP:
            return
        self._servo.obey(command, self._arms(self.stamp()))
        self._trace.mark("applied", command.sequence)
        self._say_applied(command)

    def _lockstep(self, command: Command) -> None:
        """The one command that answers the newest state moves time on; any other is not meant for it."""
        moving = command.kind in (Kind.DELTA, Kind.POSE)
        if command.stamp != self._now or command.trial != self._episode.trial or self.robot.over or not moving:
            return
        if command.kind is Kind.POSE:
            self._servo.obey(command, self._arms(self._now))
            step = self.robot.servo(self._servo.goals)
        else:
            step = self.robot.step(command.action)
        self._account(step)
        self._say_applied(command)
        self._now += STEP
        self._tell(self._now)

    def _repeat(self) -> None:
        """Who began to listen later hears the newest state too; before the first trial a new one, with new pictures."""
        with self._lock:
            if time.monotonic() - self._said > REPEAT:
                self._now += 0 if self._episode.trial else STEP
                self._tell(self._now)

    # --- real time ----------------------------------------------------------------------------------------------------

    def _on_safety(self, report: SafetyReport) -> None:
        with self._lock:
            self._watchdog.heartbeat(report.state, time.monotonic_ns())

    def _serve(self) -> None:
        """One part of a control step; what the watchdog says comes first."""
        self._trace.mark("tick", self._loops[0].late)
        with self._lock:
            before, self._order = self._order, self._watchdog.poll(time.monotonic_ns())
            if before is Order.GO and self._order is not Order.GO:
                self._servo.hold(self._arms(self.stamp()))
            self._account(self.robot.servo(self._servo.goals))
            self._tell(self.stamp())
            self._tell_truth()

    def _tell_truth(self) -> None:
        """To whoever judges the reaction to a fault; nobody else listens."""
        if any(publisher.get_subscription_count() for publisher in self._truth):
            for publisher, arm in zip(self._truth, self._arms(self.get_clock().now().nanoseconds), strict=True):
                publisher.publish(codec.arm_msg(arm))

    def _film(self) -> None:
        """Pictures at their own rate."""
        with self._lock:
            view, stamp = self.robot.view(), self.stamp()
        self._cameras.send(self.faults, self.robot.pictures(view), stamp, self._say_images)

    # --- what is measured ---------------------------------------------------------------------------------------------

    def _arms(self, stamp: int) -> list[ArmState]:
        """What the arms measure; `fault` says why the watchdog has latched a stop."""
        why = "" if self.settings.lockstep else self._watchdog.fault
        return [ArmState(stamp, a.q, a.dq, a.position, a.rotation, a.wrench, fault=why) for a in self.robot.arms()]

    def _tell(self, stamp: int) -> None:
        """Publish everything that was measured at `stamp`; in lockstep pictures come first, then the state."""
        episode = self._episode = replace(self._episode, stamp=stamp)
        state = RobotState(stamp, episode.trial, episode.step, dict(self.robot.values))
        if self._time:
            self._said = time.monotonic()
            self._time.publish(Clock(clock=codec.time_msg(stamp)))
            if self._images:
                self._cameras.send(self.faults, self.robot.pictures(self.robot.view()), stamp, self._say_images)
        if not self.faults.silent_state:
            after(self.faults.state_latency, self._say_measured, state, self._arms(stamp), episode)

    def _say_measured(self, state: RobotState, arms: list[ArmState], episode: Episode) -> None:
        self._trace.mark("state", state.stamp)
        lockstep = self.settings.lockstep
        if not lockstep:
            self._say_state(state)  # first: the policy waits for it
        for say, arm in zip(self._say_arm, arms, strict=True):
            say(arm)
        self._say_episode(episode)
        if lockstep:
            self._say_state(state)  # last: it is what the next command answers
        self._say_plain(state, arms)

    def _say_plain(self, state: RobotState, arms: list[ArmState]) -> None:
        """For everybody else's tools, where there are any: a hundred times a second it costs more than it looks."""
        for number, (plain, arm) in enumerate(zip(self._plain, arms, strict=True)):
            if not any(publisher.get_subscription_count() for publisher in plain.values()):
                continue
            message, fingers = codec.arm_msg(arm), state.values[f"robot{number}_gripper_qpos"]
            plain["joint_states"].publish(codec.joints_msg(arm.stamp, number, arm.q, arm.dq, fingers))
            plain["ee_pose"].publish(PoseStamped(header=message.header, pose=message.pose))
            plain["wrench"].publish(WrenchStamped(header=message.header, wrench=message.wrench))

    def _say_images(self, pictures: Pictures, stamp: int) -> None:
        self._trace.mark("image", stamp)
        for key, (camera, images, infos) in self._images.items():
            height, width = pictures[key].shape[:2]
            infos.publish(codec.pinhole_msg(stamp, camera.name, height, width, camera.field_of_view))
            images.publish(codec.image_msg(stamp, camera.name, pictures[key], camera.colour))

    def close(self) -> None:
        """End the loops, then free the simulator."""
        for loop in self._loops:
            loop.stop()
        self._trace.write()
        self.robot.close()


def main() -> int:
    return run(SimNode)


if __name__ == "__main__":
    sys.exit(main())
