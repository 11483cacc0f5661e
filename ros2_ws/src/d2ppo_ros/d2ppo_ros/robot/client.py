"""One arm through the client library (franky): connection, measurements, and the one torque motion that drives it.

Three threads, since the library blocks: one connects and reads (the constructor may hang for ever, an idle read waits
for the next packet, a silent robot makes it wait a second); one makes the calls that begin and end motions; the servo
loop only hands over references, which is wait-free. A connection that is lost is never used again: a new object is
made. Nothing here recovers a robot or begins a motion by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from d2ppo_core.errors import UserError

from ..safety.kinematics import LIMITS
from .limits import set_limits
from .reading import Health, Reading, reading_of
from .settings import ArmSettings
from .versions import check, install_line, wrong_build
from .workers import Call, OneAtATime

RETRY = 1.0  # s between two tries to connect
SETTLE = 0.5  # s in which a recovery may still show errors that are over
SLOW = 2.0  # s: a call to the robot that takes longer is said to hang
PREEMPTED = "Move command preempted!"  # how the library names an end that we asked for


def library(model: str) -> Any:
    """franky, of the right build as far as it says; what is missing is said in one sentence."""
    check(model)
    try:
        import franky
    except ImportError as error:
        raise UserError(f"franky does not import ({error}); run {install_line(model)}") from error
    return franky


class ArmClient:
    """See the module.

    Args:
        number: which arm; for what is said of it.
    """

    def __init__(self, settings: ArmSettings, number: int) -> None:
        self.settings, self.host = settings, settings.hosts[number]
        self._franky = library(settings.robot_model)
        self.reading: Reading | None = None
        self.limits: dict[str, Any] = {}  # what was set at the robot
        self.connections = 0  # made so far
        self._health, self._calls = Health(settings.frozen), OneAtATime(f"arm{number} calls")
        self._robot: Any = None
        self._tracker: Any = None
        self._why = f"{self.host}: not connected yet"  # why there is no connection; empty: there is one
        self._lost_control = ""
        self._ending = threading.Event()
        self._reader = threading.Thread(target=self._serve, daemon=True, name=f"arm{number} states")

    def start(self) -> None:
        """Connect, and read for as long as there is a connection."""
        self._reader.start()

    # --- what the servo loop asks -------------------------------------------------------------------------------------

    def fault(self, now: int) -> str:
        """What forbids to drive the arm at `now` (ns, steady clock); empty: nothing."""
        if self._why:
            return self._why
        if self._calls.age > SLOW:
            return f"{self.host}: the robot has not answered for {self._calls.age:.1f} s"
        return self._health.look(now) or self._lost_control

    @property
    def warning(self) -> str:
        """What is worth saying and stops nothing."""
        return self._health.warning

    @property
    def driven(self) -> bool:
        """Whether our motion has the arm."""
        robot = self._robot
        return bool(self._tracker is not None and robot is not None and robot.is_in_control)

    @property
    def busy(self) -> bool:
        """Whether a motion is being begun or ended."""
        return self._calls.busy

    def send(self, pose: np.ndarray, twist: np.ndarray) -> None:
        """A reference: O_T_EE (4, 4) in the base's frame, twist (6,) m/s and rad/s. Wait-free."""
        f, tracker = self._franky, self._tracker
        if tracker is not None:
            tracker.set_target(f.Affine(pose), f.Twist(twist[:3], twist[3:]))

    def take(self) -> None:
        """Begin to drive the arm where it stands; `driven` tells when that has come about."""
        self._calls.start(self._take)

    def let_go(self) -> None:
        """End the torque motion gently; best when the arm stands still already."""
        self._calls.start(self._let_go)

    def stop(self) -> None:
        """End the motion at once: the robot brakes."""
        robot, self._tracker = self._robot, None
        if robot is not None:
            self._calls.start(robot.stop)

    def recover(self) -> str:
        """Ask the robot to recover from its errors, because a person said so; what came of it, within a few seconds."""
        robot = self._robot
        if robot is None:
            return self._why
        answer: list[str] = []
        self._calls.wait(2 * SLOW)  # whatever ends a motion comes first
        if not self._calls.start(lambda: answer.append(self._recover(robot))):
            return f"{self.host}: the robot has not answered the last call yet"
        if not self._calls.wait(3 * SLOW):
            return f"{self.host}: the robot does not answer"
        return answer[0] if answer else f"{self.host}: {self._calls.outcome()}"

    def close(self) -> None:
        """Let go of the arm and of the connection."""
        self._calls.wait(SLOW)  # it may be about to be taken
        if self.driven:
            self.let_go()
            self._calls.wait(SLOW)
        self._ending.set()
        if self._reader.is_alive():
            self._reader.join(SLOW)

    # --- the connection -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Thread: connect; read; when that fails, forget the object and connect anew."""
        while not self._ending.is_set():
            robot = self._connected()
            if robot is None:
                continue
            try:
                self._prepare(robot)
                self._robot, self._why = robot, ""
                self.connections += 1
                self._read(robot)
            except Exception as error:  # the library has many kinds, and none may end this thread
                self._why = f"{self.host}: the connection is lost ({_first_line(error)})"
            self._robot = self._tracker = robot = None  # the old object must be gone before there is a new one
            self._health.forget()
            self._ending.wait(RETRY)

    def _connected(self) -> Any:
        """A new object, or None after a failure; a constructor that hangs is waited for, and said."""
        call = Call(self._connect, f"connect {self.host}")
        while not call.wait(0.1):
            if self._ending.is_set():
                return None
            if call.age > self.settings.connect_timeout:
                self._why = (
                    f"{self.host}: the connection hangs since {call.age:.0f} s; is another program connected to the "
                    "robot, or its control interface off?"
                )
        if call.error is None:
            return call.result
        self._why = self._refusal(call.error)
        self._ending.wait(RETRY)
        return None

    def _connect(self) -> Any:
        f, s = self._franky, self.settings
        realtime = f.RealtimeConfig.Enforce if s.realtime else f.RealtimeConfig.Ignore
        return f.Robot(
            self.host, relative_dynamics_factor=1.0, default_torque_threshold=s.collision_torque,
            default_force_threshold=s.collision_force, realtime_config=realtime,
        )  # fmt: skip

    def _refusal(self, error: BaseException) -> str:
        f, said = self._franky, _first_line(error)
        if isinstance(error, f.IncompatibleVersionException):
            return f"{self.host}: {wrong_build(said, self.settings.robot_model)}"
        if isinstance(error, f.RealtimeException):
            return f"{self.host}: {said}; boot the real-time kernel, or set realtime: false"
        return f"{self.host}: no connection ({said}); is the robot on, its control interface enabled, the cable in?"

    def _prepare(self, robot: Any) -> None:
        """Everything that must be set before a motion: dynamic limits, collision thresholds."""
        s = self.settings
        self.limits = set_limits(robot, s.robot_model, s.dynamics_fraction)
        robot.set_collision_behavior(s.collision_torque, s.collision_force)

    def _read(self, robot: Any) -> None:
        """Read until that fails. While idle a read waits for the next packet, at most a second."""
        period, due = 1.0 / self.settings.state_rate, time.monotonic()
        self._lost_control = ""
        while not self._ending.is_set():
            state = robot.state
            reading = reading_of(state, time.monotonic_ns(), robot.is_in_control)
            if self.reading is None or reading.time != self.reading.time:
                self.reading = reading
            self._health.update(reading)
            self._watch_motion(robot)
            due = max(due + period, time.monotonic())
            self._ending.wait(due - time.monotonic())

    def _watch_motion(self, robot: Any) -> None:
        """A motion that ended without our asking for it is noticed, with its reason."""
        if self._tracker is None or robot.is_in_control or self._calls.busy:
            return
        self._tracker, why = None, "the motion ended by itself: a force stopped it"
        try:
            robot.poll_motion()
        except self._franky.NetworkException:
            raise
        except Exception as error:
            why = _first_line(error)
        if PREEMPTED not in why:
            self._lost_control = f"{self.host}: {why}"

    # --- motions ------------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        robot, s, f = self._robot, self.settings, self._franky
        if robot is None or self.driven:
            return
        self._lost_control, ends = "", LIMITS[s.robot_model]
        try:
            posture = f.PostureTask(robot.state.q, s.posture_stiffness) if s.posture_stiffness else None
            tracker = f.CartesianImpedanceTracker(
                robot, translational_stiffness=s.stiffness, rotational_stiffness=s.rotational_stiffness,
                translational_error_clip=np.full(3, s.error_clip),
                rotational_error_clip=np.full(3, s.rotational_error_clip), posture_task=posture,
                max_delta_tau=s.max_delta_tau, lower_joint_limits=ends.low, upper_joint_limits=ends.high,
            )  # fmt: skip
            tracker.motion.add_reaction(f.Reaction(self._contact(), f.TorqueStopMotion()))
            self._tracker = tracker
        except Exception as error:
            self._lost_control = f"{self.host}: the robot does not let itself be driven ({_first_line(error)})"

    def _contact(self) -> Any:
        """The condition that ends the motion inside the 1 kHz loop."""
        measure, most = self._franky.Measure, self.settings.reaction_force
        axes = (measure.FORCE_X, measure.FORCE_Y, measure.FORCE_Z)
        parts = [part for axis in axes for part in (axis > most, axis < -most)]
        total = parts[0]
        for part in parts[1:]:
            total = total | part
        return total

    def _let_go(self) -> None:
        robot, tracker = self._robot, self._tracker
        self._tracker = None
        if robot is None or tracker is None or not robot.is_in_control:
            return
        try:
            robot.move(self._franky.TorqueStopMotion(), asynchronous=True)
            robot.join_motion(SLOW)
        except Exception as error:
            if PREEMPTED not in str(error):
                self._lost_control = f"{self.host}: {_first_line(error)}"

    def _recover(self, robot: Any) -> str:
        """The library's answer may be older than the recovery: what counts is whether errors are left soon after."""
        try:
            robot.recover_from_errors()
        except self._franky.CommandException as error:
            return f"{self.host}: not recovered ({_first_line(error)}); release the user stop, or unlock it in Desk"
        end = time.monotonic() + SETTLE
        while (left := self._left(robot)) and time.monotonic() < end:
            time.sleep(0.01)
        if left:
            return f"{self.host}: not recovered, {left}"
        self._lost_control = ""
        return ""

    def _left(self, robot: Any) -> str:
        """Errors that the robot, or our own last reading of it, still shows."""
        shown = ", ".join(self.reading.errors) if self.reading else ""
        return shown or ("errors are left" if robot.has_errors else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix("libfranka: ")


Clients = Callable[[ArmSettings, int], ArmClient]
