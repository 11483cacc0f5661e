"""Commands -> the reference of each arm's controller, at the servo's rate. Pure: robot time and measured poses in.

A DELTA is resolved where it arrives, with `d2ppo_core.action.pose_target`, against the measured pose or against the
last goal, as the contract's `delta_reference` says. Towards that goal the reference goes as the arm went in training:
the nominal closed-loop response of the controller of the demonstrations (`d2ppo_core.response`), whose velocity is the
controller's feed-forward. A POSE is a waypoint of a path that the executor has already made smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.action import PoseTarget
from d2ppo_core.contract import ActionSpec
from d2ppo_core.response import Motion, advance

from ..records import SECOND, ArmState, Command, Kind
from ..safety.workspace import Workspace
from ..servo import Servo
from .ceilings import Ceilings, Limiter
from .waypoints import PathPoint, Waypoints, turn_between, turned


class References:
    """The references of one robot's arms.

    Args:
        lag: s by which the arm follows its reference: the pose that a delta refers to is the measured one, carried on
            by so much. In training the arm was its own reference.
        windup: (m, rad) from the measured pose at which a commanded goal starts anew there.
    """

    def __init__(
        self,
        action: ActionSpec,
        ceilings: Ceilings,
        workspace: Workspace | None = None,
        lag: float = 0.0,
        windup: tuple[float, float] = (0.03, 0.2),
    ) -> None:
        self.action, self.lag, self.windup = action, lag, windup
        self._servo, self._ceilings, self._workspace = Servo(action), ceilings, workspace
        self._limiters: list[Limiter] = []
        self._paths: list[Waypoints] | None = None  # while poses are followed, else deltas
        self._time = 0.0  # s of the robot's clock
        self.reanchored = 0

    @property
    def started(self) -> bool:
        """Whether the arms have been seen."""
        return bool(self._limiters)

    @property
    def changed(self) -> int:
        """Cycles in which a ceiling held a reference back."""
        return sum(limiter.changed for limiter in self._limiters)

    @property
    def grippers(self) -> list[float]:
        """What each hand was told last: -1 open ... +1 closed, 0 nothing."""
        return [goal.gripper for goal in self._servo.goals]

    def points(self) -> list[PathPoint]:
        """Where the references are."""
        return [limiter.point for limiter in self._limiters]

    def hold(self, time: float, arms: Sequence[ArmState]) -> list[PathPoint]:
        """At once: stay where the arms are measured. `time` is the robot's clock in s."""
        rests = [PathPoint.rest(arm.position, arm.rotation) for arm in arms]
        if not self._limiters:
            self._limiters = [Limiter(self._ceilings, self._workspace, rest) for rest in rests]
        for limiter, rest in zip(self._limiters, rests, strict=True):
            limiter.reset(rest)
        self._servo.hold(arms)
        self._paths, self._time = None, time
        return rests

    def obey(self, command: Command, time: float, arms: Sequence[ArmState]) -> None:
        """Take a motion that the watchdog lets pass; a malformed one raises a `UserError` and changes nothing.

        A POSE is for the command's stamp, which is given here as `time` of the robot's clock by who knows both clocks.
        """
        if command.kind is Kind.DELTA:
            self._unwind(arms)
            self._servo.obey(command, [self._expected(arm, limiter.point) for arm, limiter in self._pairs(arms)])
            self._paths = None
        elif command.kind is Kind.POSE:
            self._servo.obey(command, arms)  # checks it, and keeps the grippers
            self._follow(command, time)

    def advance(self, time: float) -> list[PathPoint]:
        """The references at `time` of the robot's clock; where it stands still, so do they."""
        seconds = time - self._time
        if seconds <= 0:
            return self.points()
        self._time = time
        wanted = [path.at(time) for path in self._paths] if self._paths else self._respond(seconds)
        return [limiter.follow(point, seconds) for limiter, point in zip(self._limiters, wanted, strict=True)]

    def _respond(self, seconds: float) -> list[PathPoint]:
        """Each reference on its way to its goal, as the controller of training would have moved the arm."""
        found = []
        for limiter, goal in zip(self._limiters, self._servo.goals, strict=True):
            point = limiter.point
            motion = Motion(point.position, point.rotation, point.twist, np.zeros(6))
            moved = advance(motion, goal.position, goal.orientation, seconds)
            found.append(PathPoint(moved.position, moved.rotation, moved.velocity))
        return found

    def _follow(self, command: Command, time: float) -> None:
        if self._paths is None:
            self._paths = [Waypoints(self._time, limiter.point) for limiter in self._limiters]
        for path, target in zip(self._paths, command.targets, strict=True):
            rotation = Rotation.from_quat(target.quaternion).as_matrix()
            path.add(self._time, time, PathPoint(target.position, rotation, target.velocity))

    def _pairs(self, arms: Sequence[ArmState]) -> list[tuple[ArmState, Limiter]]:
        return list(zip(arms, self._limiters, strict=True))

    def _expected(self, arm: ArmState, reference: PathPoint) -> ArmState:
        """The arm where it will be when it has caught up with its reference's present velocity."""
        move = self.lag * reference.twist
        return replace(arm, position=arm.position + move[:3], rotation=turned(arm.rotation, move[3:]))

    def _unwind(self, arms: Sequence[ArmState]) -> None:
        """Commanded goals that the arm does not get to (blocked, pushed) start anew where it is."""
        if self.action.delta_reference != "commanded":
            return
        far, wide = self.windup
        goals = self._servo.goals
        for number, (arm, goal) in enumerate(zip(arms, goals, strict=True)):
            off = np.linalg.norm(goal.position - arm.position)
            if off > far or np.linalg.norm(turn_between(arm.rotation, goal.orientation)) > wide:
                goals[number] = PoseTarget(arm.position, arm.rotation, goal.gripper)
                self.reanchored += 1


def robot_seconds(stamp: int, now: int, robot_now: float) -> float:
    """A stamp (ns) of the node's clock on the robot's clock (s), both being read at the same moment."""
    return robot_now + (stamp - now) / SECOND
