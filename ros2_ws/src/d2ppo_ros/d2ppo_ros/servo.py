"""The robot's side of a command: what the arms shall go to, at the driver's rate. Pure; the simulator's node and every
driver share it, each with its own watchdog in the same loop.

A raw action is resolved where DESIGN puts it: here, when it arrives, against the measured pose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core import response
from d2ppo_core.action import PoseTarget, pose_target
from d2ppo_core.contract import ActionSpec
from d2ppo_core.errors import UserError

from .records import ArmState, Command, Kind, Target

PER_ARM = 7  # numbers of an action


class Servo:
    """Goals of the arms of one robot: held until a command changes them."""

    def __init__(self, action: ActionSpec) -> None:
        self._action = action
        self.goals: list[PoseTarget] = []  # empty until the first hold

    def hold(self, arms: Sequence[ArmState]) -> None:
        """Stay where the arms are measured now; the grippers keep what they were told."""
        grippers = [goal.gripper for goal in self.goals] or [0.0] * len(arms)
        self.goals = [
            PoseTarget(arm.position, arm.rotation, gripper) for arm, gripper in zip(arms, grippers, strict=True)
        ]

    def obey(self, command: Command, arms: Sequence[ArmState]) -> None:
        """Take a command: DELTA and POSE set new goals, HOLD and STOP hold, KEEP changes nothing."""
        if command.kind is Kind.DELTA:
            self.goals = self._resolved(command.action, arms)
        elif command.kind is Kind.POSE:
            if len(command.targets) != len(arms):
                raise UserError(f"a command has {len(command.targets)} targets for {len(arms)} arms; it is ignored")
            if not all(map(_finite, command.targets)):
                raise UserError("a command's target holds NaN, infinity or no orientation; it is ignored")
            self.goals = [osc_target(target) for target in command.targets]
        elif command.kind in (Kind.HOLD, Kind.STOP):
            self.hold(arms)

    def _resolved(self, action: np.ndarray, arms: Sequence[ArmState]) -> list[PoseTarget]:
        if action.shape != (self._action.size,):
            raise UserError(f"a command has {action.size} numbers, the robot takes {self._action.size}; it is ignored")
        measured = self._action.delta_reference == "measured"
        anchors = [(arm.position, arm.rotation) for arm in arms]
        if not measured and self.goals:
            anchors = [(goal.position, goal.orientation) for goal in self.goals]
        parts = action.reshape(len(arms), PER_ARM)  # [Da] -> [arms, 7]
        return [pose_target(part, *anchor, self._action) for part, anchor in zip(parts, anchors, strict=True)]


def _finite(target: Target) -> bool:
    parts = (target.position, target.quaternion, target.velocity, target.acceleration, target.gripper)
    return all(np.isfinite(part).all() for part in parts) and bool(np.linalg.norm(target.quaternion) > 0.5)


def osc_target(target: Target) -> PoseTarget:
    """What an operational-space controller without feed-forward must be given to follow a moving target."""
    velocity, acceleration = target.velocity, target.acceleration
    rotation = Rotation.from_quat(target.quaternion).as_matrix()
    return PoseTarget(
        response.osc_goal(target.position, velocity[:3], acceleration[:3]),
        response.osc_goal_rotation(rotation, velocity[3:], acceleration[3:]),
        float(np.clip(target.gripper, -1.0, 1.0)),
    )
