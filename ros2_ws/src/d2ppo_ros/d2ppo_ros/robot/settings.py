"""Every parameter of the arm's driver, with unit, range and reason. The upper end of each range is a hard ceiling."""

from __future__ import annotations

from dataclasses import dataclass

from d2ppo_core.errors import UserError

from ..parameters import parameter
from ..safety.settings import SafetySettings

_SAFE = {field: value for field, value in vars(SafetySettings()).items()}


@dataclass(frozen=True)
class ArmSettings:
    """One robot: an arm, or two."""

    task: str = parameter("lift", "the task whose contract the robot states: its keys, and what its actions mean")
    objects: bool = parameter(False, "the contract names the object's key, too: another node measures it")
    limits: str = parameter("robot", "limits profile that raw actions are held to", choices=("sim", "robot"))
    robot_model: str = parameter("panda", "whose dynamic limits are set", choices=("panda", "fr3"))
    hosts: list[str] = parameter(["172.16.0.2"], "addresses of the robots' control boxes, one for each arm")
    gripper: bool = parameter(True, "Franka's hand is mounted")
    base_position: list[float] = parameter([-0.56, 0.0, 0.912, 0.0, 0.0, 0.0], "where each arm's base stands in the "
                                           "policy's world, 3 numbers an arm", unit="m", low=-5.0, high=5.0)
    base_yaw: list[float] = parameter([0.0, 0.0], "each arm's base in the world, turned about the vertical",
                                      unit="rad", low=-3.2, high=3.2)
    realtime: bool = parameter(False, "refuse to run without a real-time kernel; where there is one, set it")
    connect_timeout: float = parameter(5.0, "a connection that has not answered by then is reported as hanging",
                                       unit="s", low=0.5, high=60.0)

    # The servo loop.
    rate: float = parameter(200.0, "of references, between the policy's 20 Hz and the controller's 1 kHz", unit="Hz",
                            low=100.0, high=500.0)
    publish_rate: float = parameter(100.0, "of robot/state and robot/arm*", unit="Hz", low=50.0, high=500.0)
    state_rate: float = parameter(250.0, "of reading the robot's state", unit="Hz", low=100.0, high=1000.0)
    command_hold: float = parameter(0.1, "silence of commands until the arm is held", unit="s", low=0.02, high=0.5)
    command_stop: float = parameter(0.3, "silence of commands until a stop is latched", unit="s", low=0.05, high=1.0)
    command_disarm: float = parameter(1.0, "silence of commands until the driver lets go of the arm", unit="s", low=0.1,
                                      high=5.0)
    lease: float = parameter(0.2, "silence of the safety node until a stop is latched", unit="s", low=0.1, high=1.0)
    overrun: float = parameter(0.1, "a cycle that comes so late stops the arm: nothing watched it meanwhile", unit="s",
                               low=0.02, high=0.5)
    frozen: float = parameter(0.1, "the robot's clock has stood still for so long: it is silent", unit="s", low=0.02,
                              high=0.5)
    rest_speed: float = parameter(0.02, "slower than this the arm is let go of", unit="m/s", low=0.001, high=0.1)
    rest_time: float = parameter(1.0, "after so long of holding it is let go of anyhow", unit="s", low=0.1, high=5.0)

    # Deltas.
    lag: float = parameter(0.035, "by which the arm follows its reference (d2ppo bench arm): a measured pose is "
                           "carried on by it before a delta is added", unit="s", low=0.0, high=0.2)
    windup: float = parameter(0.03, "a commanded goal farther from the measured pose starts anew there", unit="m",
                              low=0.005, high=0.1)
    windup_angle: float = parameter(0.2, "the same for rotation", unit="rad", low=0.02, high=0.5)

    # Ceilings.
    dynamics_fraction: float = parameter(0.3, "share of the model's dynamic limits that is set in the client library",
                                         low=0.01, high=1.0)
    max_speed: float = parameter(0.3, "of the reference", unit="m/s", low=0.01, high=1.0)
    max_turn: float = parameter(1.25, "of the reference", unit="rad/s", low=0.05, high=2.5)
    max_acceleration: float = parameter(4.0, "of the reference", unit="m/s^2", low=0.1, high=6.5)
    max_turn_acceleration: float = parameter(12.5, "of the reference", unit="rad/s^2", low=0.5, high=12.5)
    box_low: list[float] = parameter(_SAFE["box_low"], "corner of the box that references stay in, world; empty: no "
                                     "box", unit="m", low=-3.0, high=3.0)
    box_high: list[float] = parameter(_SAFE["box_high"], "its other corner", unit="m", low=-3.0, high=3.0)
    table: float = parameter(0.0, "height of the table", unit="m", low=-3.0, high=3.0)
    clearance: float = parameter(0.01, "least height of a reference over the table; 0: no table", unit="m", low=0.0,
                                 high=0.5)
    tilt: float = parameter(0.7854, "largest angle of the tool's axis from straight down; 0: any", unit="rad", low=0.0,
                            high=1.6)

    # The impedance controller.
    stiffness: float = parameter(2000.0, "750 to 1000 for contact, 2000 for precision", unit="N/m", low=50.0,
                                 high=3000.0)
    rotational_stiffness: float = parameter(100.0, "50 with the softer, 100 to 150 with the stiffer", unit="Nm/rad",
                                            low=5.0, high=300.0)
    error_clip: float = parameter(0.015, "largest error that pushes: times the stiffness it is the largest force of "
                                  "the spring on each axis", unit="m", low=0.002, high=0.05)
    rotational_error_clip: float = parameter(0.15, "the same for rotation", unit="rad", low=0.02, high=0.5)
    max_delta_tau: float = parameter(1.0, "largest change of a torque in a cycle of 1 ms; the robot's limit is 1",
                                     unit="Nm", low=0.05, high=1.0)
    posture_stiffness: float = parameter(5.0, "pulls the elbow to where it was when control began; 0: nothing does",
                                         unit="Nm/rad", low=0.0, high=20.0)

    # Contact: the robot's own reflexes, and a stop inside its 1 kHz loop.
    collision_torque: float = parameter(20.0, "the robot's reflex", unit="Nm", low=5.0, high=100.0)
    collision_force: float = parameter(40.0, "the robot's reflex", unit="N", low=5.0, high=100.0)
    reaction_force: float = parameter(35.0, "along an axis: the motion ends within a cycle", unit="N", low=5.0,
                                      high=100.0)

    # The hand.
    grip_speed: float = parameter(0.1, "of the fingers", unit="m/s", low=0.01, high=0.1)
    grip_force: float = parameter(20.0, "of a grasp", unit="N", low=1.0, high=40.0)
    grip_width: float = parameter(0.08, "of the open hand", unit="m", low=0.01, high=0.08)
    grip_dwell: float = parameter(0.5, "least time between two of its commands", unit="s", low=0.5, high=5.0)
    grip_timeout: float = parameter(5.0, "a command that has not ended by then is given up", unit="s", low=1.0,
                                    high=20.0)
    grip_deadband: float = parameter(0.05, "an action nearer to 0 changes nothing", low=0.0, high=0.5)

    def __post_init__(self) -> None:
        arms, wrong = len(self.hosts), []
        if arms not in (1, 2) or not all(self.hosts):
            wrong.append(f"hosts={self.hosts} must name one control box, or two")
        if len(self.base_position) < 3 * arms or len(self.base_yaw) < arms:
            wrong.append(f"base_position needs 3 numbers and base_yaw one for each of {arms} arms")
        if len(self.box_low) != len(self.box_high) or len(self.box_low) not in (0, 3):
            wrong.append("box_low and box_high must have 3 numbers each, or none")
        elif any(low >= high for low, high in zip(self.box_low, self.box_high, strict=True)):
            wrong.append("box_low must be below box_high in x, y and z")
        if not self.command_hold < self.command_stop < self.command_disarm:
            wrong.append("command_hold, command_stop and command_disarm must follow one another")
        if self.reaction_force > self.collision_force:
            wrong.append("reaction_force must not be above collision_force: the robot's reflex would come first")
        if wrong:
            raise UserError(f"arm: {'; '.join(wrong)}; correct the parameter file")
