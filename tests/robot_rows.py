"""What may go wrong with an arm, each provoked at a stand-in while it moves: franky's exceptions and the checks of the
safety monitor, of cameras too. What is expected is stated here, before anything is measured. Times of rest are robot
time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_ros.records import Kind, State, Target
from robot_eyes import SeeingRig
from robot_guarded import GuardedRig
from robot_rig import SIDEWAYS

BRAKES = 0.1  # s: the stand-in's brakes are ideal
HOLDS = 0.6  # s that the impedance controller needs to come to rest at the pose where it was held
NAN, WILD = np.full(7, np.nan), np.array([0.0, 30.0, 0.0, 0.0, 0.0, 0.0, 0.0])


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        said: what the reason must contain, or with | several of which one.
        rest: s of robot time within which the arm is at rest; 0: it goes on, and `shown` becomes true.
        settings: of the monitor, where they differ.
    """

    name: str
    reaction: str
    said: str
    rest: float
    strike: Callable[[Any], Any]
    settings: tuple[tuple[str, Any], ...] = ()
    shown: Callable[[Any], bool] = lambda rig: True


def ask(do: str, **what: Any) -> Callable[[GuardedRig], Any]:
    """A request to the stand-in."""
    return lambda rig: rig.control.ask(do, **what)


def push(newton: float, seconds: float, axis: int = 0) -> Callable[[GuardedRig], Any]:
    """An external force (axis 0 to 2) or torque (3 to 5)."""
    return ask("force", wrench=[newton * (n == axis) for n in range(6)], seconds=seconds)


def put(**what: Any) -> Callable[[GuardedRig], Any]:
    """Change what the rig does from now on."""

    def strike(rig: GuardedRig) -> None:
        for name, value in what.items():
            setattr(rig, name, value)

    return strike


def both(*strikes: Callable[[GuardedRig], Any]) -> Callable[[GuardedRig], Any]:
    """One after the other."""
    return lambda rig: [strike(rig) for strike in strikes]


def thrice(action: np.ndarray) -> Callable[[GuardedRig], Any]:
    """The executor says this three times, and goes on as before."""
    return lambda rig: [rig.command({"kind": Kind.DELTA, "action": action}) for _ in range(3)]


def tighten(**settings: Any) -> Callable[[GuardedRig], Any]:
    """From now on the monitor measures the arm against other limits, which it breaks already."""
    return lambda rig: rig.tighten(**settings)


def toggle(rig: GuardedRig) -> None:
    """Open and close, ten times in 2.5 s."""
    for n in range(10):
        rig.action = np.append(SIDEWAYS[:6], 1.0 if n % 2 else -1.0)
        time.sleep(0.25)


def far(rig: GuardedRig) -> None:
    """One target 3 m to the side."""
    arm = rig.driver.arms(rig.driver.readings(), lambda at: at, 0)[0]
    quaternion = Rotation.from_matrix(arm.rotation).as_quat()
    target = Target(arm.position + np.array([0.0, 3.0, 0.0]), quaternion, np.zeros(6), np.zeros(6), 0.0)
    rig.command({"kind": Kind.POSE, "targets": (target,)})


def estop(rig: GuardedRig) -> None:
    """Somebody presses it."""
    with rig.lock:
        rig.monitor.stop(time.time_ns(), "emergency stop")


def see(**what: Any) -> Callable[[SeeingRig], Any]:
    """Change what the first camera does from now on."""
    return lambda rig: [setattr(rig.eyes, name, value) for name, value in what.items()]


def wink(rig: SeeingRig) -> None:
    """The first camera closes its eye for 0.3 s, and is seen to be missed."""
    rig.eyes.silent = True
    time.sleep(0.3)
    assert "HOLD image_age" in rig.cause, rig.cause
    rig.eyes.silent = False


ROWS = [
    Row("reflex", "the robot brakes; latched until recovered", "cartesian_reflex", BRAKES, ask("reflex")),
    Row("reflex of a limit", "the robot brakes; latched until recovered", "joint_velocity_violation", BRAKES,
        ask("reflex", error="joint_velocity_violation")),
    Row("stop button", "the robot brakes; latched until released", "UserStopped", BRAKES, ask("user_stop")),
    Row("no automatic recovery", "the robot brakes; says that somebody must come", "cartesian_reflex", BRAKES,
        both(ask("recovery", answer="manual"), ask("reflex"))),
    Row("push of 20 N, 1.5 s", "safety, 15 N: held, latched after 1 s", "STOPPED force", 1.5 + HOLDS, push(20.0, 1.5)),
    Row("push of 33 N, 0.3 s", "safety, 30 N: latched", "STOPPED force", 0.3 + HOLDS, push(33.0, 0.3)),
    Row("blow of 37 N, 30 ms", "driver, 35 N: the motion ends inside the robot's 1 kHz loop", "a force stopped it",
        HOLDS, push(37.0, 0.03, axis=1)),
    Row("push of 60 N, 0.3 s", "the robot's own reflex at 40 N", "cartesian_reflex", 0.3 + HOLDS, push(60.0, 0.3)),
    Row("twist of 9 Nm, 0.3 s", "safety, 8 Nm, or the speed that it gives the hand: latched",
        "STOPPED torque|STOPPED speed", 0.3 + HOLDS, push(9.0, 0.3, axis=5)),
    Row("no states for 1.6 s", "driver, 0.2 s: it is silent; a new connection", "silent", HOLDS,
        ask("silence", seconds=1.6)),
    Row("connection breaks", "the robot brakes; a new connection", "connection", HOLDS, ask("drop")),
    Row("connection hangs", "the robot brakes; said after 1 s, tried again", "hangs", HOLDS,
        both(ask("deaf"), ask("drop"))),
    Row("robot of another version", "the robot brakes; what to install", "make robot ROBOT=panda", HOLDS,
        both(ask("version", version=5), ask("drop"))),
    Row("half of the commands late", "driver, below 0.9 for 1 s: latched", "came in time", 1.1 + HOLDS,
        ask("success", rate=0.5)),
    Row("executor silent", "safety, command age: held at 0.1 s, latched at 0.9 s", "STOPPED command_age",
        0.1 + HOLDS, put(action=None)),
    Row("safety silent", "driver, 0.2 s without a heartbeat: latched", "safety is silent", 0.2 + HOLDS,
        put(alive=False)),
    Row("servo loop stands still for 0.3 s", "driver, 0.1 s: latched when it runs again", "the servo loop", 0.3 + HOLDS,
        put(stall=0.3)),
    Row("emergency stop", "safety, from any state", "STOPPED stop", HOLDS, estop),
    Row("operator's switch released", "safety: held, latched after 0.3 s", "STOPPED operator", HOLDS,
        put(pressed=False), settings=(("operator_stop", 0.3),)),
    Row("operator's switch dies", "safety, 0.3 s: latched", "STOPPED operator", 0.3 + HOLDS, put(pressed=None),
        settings=(("operator_stop", 0.3),)),
    Row("NaN commands", "safety refuses each, latches the third", "STOPPED malformed", HOLDS, thrice(NAN)),
    Row("out-of-range commands", "safety clips each, latches the third", "STOPPED range", HOLDS, thrice(WILD)),
    Row("commands 0.3 s old", "safety drops each: command age", "STOPPED command_age", 0.1 + HOLDS, put(late=0.3)),
    Row("commands of the future", "safety drops each: command age", "STOPPED command_age", 0.1 + HOLDS,
        put(late=-0.3)),
    Row("arm is blocked by a table", "safety, 6 cm from its target for 0.2 s", "STOPPED tracking", 2.5 + HOLDS,
        put(walk=np.array([0.0, 0.0, -0.08]))),
    Row("faster than it may be", "safety, measured (its limit lowered to 2 cm/s): latched", "STOPPED speed", HOLDS,
        tighten(linear_speed=0.01, linear_stop=0.02)),
    Row("a joint faster than it may be", "safety, measured (its limit lowered to 0.5 %): latched",
        "STOPPED joint_speed", HOLDS, tighten(joint_speed_hold=0.001, joint_speed_stop=0.005)),
    Row("near a joint's end", "safety, measured (its limit raised to 0.5 rad): latched", "STOPPED joint_margin",
        HOLDS, tighten(margin_slow=0.5, margin_hold=0.49, margin_stop=0.48)),
    Row("near a singularity", "safety, measured (its limit lowered to a condition number of 5): latched",
        "STOPPED singular", HOLDS, tighten(singular_slow=4.0, singular_stop=5.0)),
    Row("out of its workspace", "safety, measured 2 cm outside (its box moved away): latched", "STOPPED outside",
        HOLDS, tighten(box_high=[0.8, -0.05, 0.9])),
    Row("hand is stuck", "one command in flight, given up after 2 s; the arm goes on", "", 0.0,
        both(ask("gripper", stuck=True), toggle), shown=lambda rig: rig.driver.hands[0].given_up > rig.given_up),
    Row("a target 3 m away", "safety leaves of it what 0.25 m/s allow in a step; the arm goes on", "", 0.0, far,
        shown=lambda rig: rig.monitor.counts["command_speed"] > 0 and rig.speed() < 0.3),
]  # fmt: skip

CAMERA_ROWS = [
    Row("camera is silent", "safety, 0.1 s: held; 0.5 s: latched; the driver opens it anew after 1 s",
        "STOPPED image_age", 0.1 + HOLDS, see(silent=True)),
    Row("camera is silent for 0.3 s", "safety, 0.1 s: held; the arm goes on with the next picture", "", 0.0,
        wink, shown=lambda rig: rig.monitor.state is State.ARMED),
    Row("pictures 0.3 s late", "safety, 0.1 s: held, latched after 1 s", "STOPPED image_age", 0.1 + HOLDS,
        see(late=0.3)),
    Row("the same picture again and again", "safety, 5 in a row: held, latched after 1 s", "STOPPED frozen",
        0.2 + HOLDS, see(shows=lambda picture: np.full_like(picture, 128))),
    Row("lens is covered", "safety, 90 % black: held, latched after 1 s", "STOPPED black", 0.1 + HOLDS,
        see(shows=lambda picture: picture // 64)),
    Row("camera is blinded", "safety, 90 % saturated: held, latched after 1 s", "STOPPED saturated", 0.1 + HOLDS,
        see(shows=lambda picture: 255 - picture // 64)),
    Row("another program sets the exposure", "the driver reads it back; safety: held, latched after 1 s",
        "STOPPED setup", 0.2 + HOLDS, lambda rig: rig.eyes.expose(15.6)),
    Row("one camera 80 ms behind the other", "safety, 50 ms: a warning; the arm goes on", "", 0.0, see(late=0.08),
        settings=(("image_hold", 0.3),), shown=lambda rig: "image_skew" in rig.monitor.warnings),
]  # fmt: skip
"""With two software RealSense cameras; what happens to one of them. For a `SeeingRig`."""

DIES, CLIENT_DIES = "robot dies, and comes back", "client dies (kill -9)"
OTHERS = {
    DIES: "driver, 0.2 s: it is silent; connected anew once it is there, and nothing moves",
    CLIENT_DIES: "the robot brakes after 20 lost commands in a row (from 0.2 m/s here); the next client is taken",
}
"""Rows with a stand-in, or a client, of their own."""
