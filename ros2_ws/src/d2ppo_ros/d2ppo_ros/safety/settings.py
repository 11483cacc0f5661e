"""Every limit of the safety monitor, with unit, range and reason. 0 switches a check off, which a robot mostly refuses.

The upper end of each range is a hard ceiling: no parameter file gets past it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import get_type_hints

from d2ppo_core.errors import UserError

from ..parameters import checked, parameter


@dataclass(frozen=True)
class SafetySettings:
    """Profile `robot`: numbers for the first runs of a real arm."""

    profile: str = parameter("robot", "limits of actions: ranges of training, or what an arm may do near people",
                             choices=("sim", "robot"))
    robot_model: str = parameter("panda", "whose joint limits and lengths; empty: joints are not looked at",
                                 choices=("", "panda", "fr3"))
    needs_arm: bool = parameter(True, "refuse to get ready before every arm's joints are seen")
    cameras: list[str] = parameter([], "cameras that the task needs")
    tool_length: float = parameter(0.2104, "joint 7 to the controlled point, along joint 7's axis (flange and Franka "
                                   "hand)", unit="m", low=0.0, high=0.6)
    base_yaw: list[float] = parameter([0.0, 0.0], "each arm's base in the world, turned about the vertical", unit="rad",
                                      low=-3.2, high=3.2)

    # Ages, by the stamps of the messages.
    command_hold: float = parameter(0.1, "silence of the executor until the arm is held: two policy steps", unit="s",
                                    low=0.0, high=0.5)
    command_stop: float = parameter(0.3, "silence of the executor until the stop is latched", unit="s", low=0.0,
                                    high=1.0)
    command_disarm: float = parameter(1.0, "silence of the executor after which nothing can be armed", unit="s",
                                      low=0.0, high=5.0)
    starved_stop: float = parameter(1.0, "an executor alive in a trial without a new motion: the policy is gone",
                                    unit="s", low=0.0, high=10.0)
    observation_stop: float = parameter(2.0, "age of what the policy saw behind a motion: a chunk and its inference",
                                        unit="s", low=0.0, high=10.0)
    state_hold: float = parameter(0.02, "age of robot states: 20 lost packets of a 1 kHz robot", unit="s", low=0.0,
                                  high=0.1)
    state_stop: float = parameter(0.1, "age of robot states", unit="s", low=0.0, high=0.5)
    image_hold: float = parameter(0.1, "age of a camera's last frame: three at 30 Hz", unit="s", low=0.0, high=0.5)
    image_stop: float = parameter(0.5, "age of a camera's last frame", unit="s", low=0.0, high=2.0)
    image_skew: float = parameter(0.05, "cameras' last frames apart: a warning", unit="s", low=0.0, high=1.0)
    operator_stop: float = parameter(0.0, "silence of the operator's heartbeat (10 Hz or more); 0: none is used",
                                     unit="s", low=0.0, high=1.0)

    hold_stop: float = parameter(1.0, "a hold that lasts this long is latched: nobody expects the arm to go on then",
                                 unit="s", low=0.0, high=10.0)

    # Clock.
    stamp_future: float = parameter(0.005, "a stamp further ahead is a wrong clock: the message is dropped", unit="s",
                                    low=0.0, high=0.1)
    clock_jump: float = parameter(0.05, "ROS clock and steady clock disagree from one tick to the next", unit="s",
                                  low=0.0, high=1.0)
    tick_warn: float = parameter(0.05, "a tick that comes later than this is a warning", unit="s", low=0.0, high=1.0)
    tick_stop: float = parameter(0.1, "a tick that comes later than this: the monitor itself was blind", unit="s",
                                 low=0.0, high=1.0)

    # Images.
    frozen_frames: int = parameter(5, "identical frames in a row of a live camera: never by chance", low=0, high=100)
    frozen_motion: float = parameter(0.0, "arm path before identical frames count: a noiseless camera may stand still",
                                     unit="m", low=0.0, high=0.1)
    image_extreme: float = parameter(0.9, "share of black or of saturated pixels: covered, or blinded", low=0.0,
                                     high=1.0)

    # Commands.
    bad_commands: int = parameter(3, "motions in a row that are malformed (each is refused) or out of range (each is "
                                  "clipped) until the stop is latched", low=1, high=10)
    clamp_warn: float = parameter(0.5, "share of motions shortened within 1 s: a policy too fast for its limits",
                                  low=0.0, high=1.0)
    linear_speed: float = parameter(0.25, "commanded: reduced speed of ISO 10218", unit="m/s", low=0.0, high=0.5)
    angular_speed: float = parameter(1.0, "commanded", unit="rad/s", low=0.0, high=2.5)
    linear_stop: float = parameter(0.3, "measured speed; above linear_speed it is held", unit="m/s", low=0.0, high=0.6)
    angular_stop: float = parameter(1.25, "measured speed; above angular_speed it is held", unit="rad/s", low=0.0,
                                    high=3.0)
    linear_acceleration: float = parameter(4.0, "of an absolute target: a third of a Panda's", unit="m/s^2", low=0.0,
                                           high=6.5)
    angular_acceleration: float = parameter(10.0, "of an absolute target", unit="rad/s^2", low=0.0, high=12.5)
    jump: float = parameter(0.01, "first absolute target after arming or a hold, from the measured pose", unit="m",
                            low=0.0, high=0.05)
    jump_angle: float = parameter(0.05, "the same for rotation", unit="rad", low=0.0, high=0.5)
    tracking: float = parameter(0.06, "sent target to measured pose: the arm is blocked or not in control", unit="m",
                                low=0.0, high=0.1)
    tracking_angle: float = parameter(0.4, "the same for rotation", unit="rad", low=0.0, high=0.6)
    tracking_time: float = parameter(0.2, "how long it may last", unit="s", low=0.0, high=1.0)
    gripper_spacing: float = parameter(0.5, "least time between toggles: a Franka hand hangs when they overlap",
                                       unit="s", low=0.0, high=5.0)

    # Workspace, in the world frame.
    box_low: list[float] = parameter([0.2, -0.45, 0.0], "corner of the box that targets stay in; empty: no box",
                                     unit="m", low=-3.0, high=3.0)
    box_high: list[float] = parameter([0.75, 0.45, 0.8], "its other corner", unit="m", low=-3.0, high=3.0)
    table: float = parameter(0.0, "height of the table", unit="m", low=-3.0, high=3.0)
    clearance: float = parameter(0.01, "least height of a target over the table; 0: no table", unit="m", low=0.0,
                                 high=0.5)
    tilt: float = parameter(0.7854, "largest angle of the tool's axis from straight down", unit="rad", low=0.0,
                            high=1.6)
    outside_stop: float = parameter(0.02, "measured pose outside of the box or below the floor", unit="m", low=0.0,
                                    high=0.05)

    # Joints.
    margin_slow: float = parameter(0.15, "to a joint's end: slower towards it", unit="rad", low=0.0, high=0.5)
    margin_hold: float = parameter(0.1, "to a joint's end: no further towards it", unit="rad", low=0.0, high=0.5)
    margin_stop: float = parameter(0.05, "to a joint's end", unit="rad", low=0.0, high=0.5)
    joint_speed_hold: float = parameter(0.5, "share of a joint's largest speed, measured; commanded is slowed to it",
                                        low=0.0, high=0.6)
    joint_speed_stop: float = parameter(0.8, "share of a joint's largest speed, measured", low=0.0, high=0.9)
    singular_slow: float = parameter(17.0, "condition number of the Jacobian: slower (MoveIt Servo's number)", low=0.0,
                                     high=25.0)
    singular_stop: float = parameter(30.0, "condition number of the Jacobian", low=0.0, high=40.0)

    # Contact.
    force_hold: float = parameter(15.0, "external force, filtered", unit="N", low=0.0, high=40.0)
    force_stop: float = parameter(30.0, "external force, filtered", unit="N", low=0.0, high=60.0)
    torque_stop: float = parameter(8.0, "external torque, filtered", unit="Nm", low=0.0, high=15.0)
    force_cutoff: float = parameter(10.0, "of the filter", unit="Hz", low=1.0, high=100.0)

    # Trials.
    max_duration: float = parameter(120.0, "of one trial", unit="s", low=0.0, high=3600.0)
    max_path: float = parameter(20.0, "that one arm moves in one trial", unit="m", low=0.0, high=500.0)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            checked(field, hints[field.name], getattr(self, field.name), "safety")
        wrong = [*_disordered(self), *_shapes(self), *(_missing(self) if self.profile == "robot" else [])]
        if wrong:
            raise UserError(f"safety, profile {self.profile}: {'; '.join(wrong)}; correct the parameter file")


_ORDERED = (
    ("command_hold", "command_stop"), ("command_stop", "command_disarm"), ("state_hold", "state_stop"),
    ("image_hold", "image_stop"), ("tick_warn", "tick_stop"), ("linear_speed", "linear_stop"),
    ("angular_speed", "angular_stop"), ("margin_stop", "margin_hold"), ("margin_hold", "margin_slow"),
    ("joint_speed_hold", "joint_speed_stop"), ("singular_slow", "singular_stop"), ("force_hold", "force_stop"),
)  # fmt: skip
_MAY_BE_OFF = frozenset({"operator_stop", "frozen_motion", "cameras", "base_yaw", "table", "tool_length"})


def _disordered(settings: SafetySettings) -> list[str]:
    pairs = [(low, high, getattr(settings, low), getattr(settings, high)) for low, high in _ORDERED]
    return [f"{low}={a} must be below {high}={b}" for low, high, a, b in pairs if 0 < b <= a]


def _shapes(settings: SafetySettings) -> list[str]:
    wrong = []
    if len(settings.box_low) != len(settings.box_high) or len(settings.box_low) not in (0, 3):
        wrong.append("box_low and box_high must have 3 numbers each, or none")
    elif any(low >= high for low, high in zip(settings.box_low, settings.box_high, strict=True)):
        wrong.append("box_low must be below box_high in x, y and z")
    elif settings.box_high and 0 < settings.clearance >= settings.box_high[2] - settings.table:
        wrong.append("the top of the box must be above table plus clearance")
    if len(settings.base_yaw) != 2:
        wrong.append("base_yaw must have 2 numbers, one for each arm (the second is not used with one)")
    return wrong


def _missing(settings: SafetySettings) -> list[str]:
    """Checks that are off and may not be off on a robot."""
    names = [field.name for field in dataclasses.fields(settings) if field.name not in _MAY_BE_OFF]
    return [f"{name} is off, which a robot does not allow" for name in names if not getattr(settings, name)]


def _variant(name: str, doc: str, base: type[SafetySettings], **defaults: object) -> type[SafetySettings]:
    """The same parameters with other defaults."""
    fields = []
    for old in dataclasses.fields(base):
        if old.name in defaults:
            new = parameter(defaults[old.name], **old.metadata)
            fields.append((old.name, old.type, new))
    return dataclasses.make_dataclass(
        name, fields, bases=(base,), frozen=True, namespace={"__doc__": doc, "__module__": __name__}
    )


SimSettings = _variant(
    "SimSettings", "Profile `sim` in real time: the ranges of training; what remains are ages, clock and images.",
    SafetySettings, profile="sim", robot_model="", needs_arm=False, base_yaw=[0.0, 0.0],
    state_hold=0.06, state_stop=0.3, image_hold=0.3, image_stop=1.0, frozen_motion=0.01,
    tick_warn=0.1, tick_stop=0.5, clamp_warn=0.0,
    linear_speed=0.0, angular_speed=0.0, linear_stop=0.0, angular_stop=0.0, linear_acceleration=0.0,
    angular_acceleration=0.0, jump=0.05, jump_angle=0.5, tracking=0.0, tracking_angle=0.0, gripper_spacing=0.0,
    box_low=[], box_high=[], clearance=0.0, tilt=0.0, margin_slow=0.0, margin_hold=0.0, margin_stop=0.0,
    joint_speed_hold=0.0, joint_speed_stop=0.0, singular_slow=0.0, singular_stop=0.0,
    force_hold=0.0, force_stop=0.0, torque_stop=0.0, max_duration=0.0, max_path=0.0,
)  # fmt: skip

LockstepSettings = _variant(
    "LockstepSettings", "Profile `sim` in lockstep: time stands still between command and state: no ages.",
    SimSettings, command_hold=0.0, command_stop=0.0, command_disarm=0.0, starved_stop=0.0, observation_stop=0.0,
    state_hold=0.0, state_stop=0.0, image_hold=0.0, image_stop=0.0, image_skew=0.0, stamp_future=0.0, clock_jump=0.0,
    hold_stop=0.0, tick_warn=0.0, tick_stop=0.0, frozen_frames=0, jump=0.0, jump_angle=0.0, image_extreme=0.0,
)  # fmt: skip


def settings_class(profile: str, lockstep: bool = False) -> type[SafetySettings]:
    """The settings whose defaults fit a profile, to be declared as ROS parameters or built as they are."""
    if profile not in ("sim", "robot"):
        raise UserError(f"safety profile '{profile}' does not exist; choose sim or robot")
    if lockstep and profile == "robot":
        raise UserError("safety profile 'robot' looks at ages, and in lockstep time stands still; choose profile sim")
    if profile == "robot":
        return SafetySettings
    return LockstepSettings if lockstep else SimSettings
