"""One motion command against its limits: form, range, speed, workspace, joints, gripper. The most cautious limit wins.

A motion inside all limits comes back as the very same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.action import apply_limits, pose_target
from d2ppo_core.contract import ActionSpec
from d2ppo_core.rotations import rotation_of

from ..records import SECOND, Command, Kind, Target
from .arms import ArmWatch, angle_between
from .checks import Finding, Reaction
from .settings import SafetySettings
from .workspace import Workspace

_RANGE = 1e-3  # an action's number this little over its limit is rounding: clipped, not counted
_SAME = 1e-9  # m or rad: no change


@dataclass(frozen=True)
class Pose:
    """A place in the world: (3,) m and (3, 3)."""

    position: np.ndarray
    rotation: np.ndarray


def malformed(command: Command, spec: ActionSpec) -> Finding | None:
    """What makes a motion unreadable: its sizes, or numbers that are none."""

    def bad(text: str) -> Finding:
        return Finding("malformed", Reaction.HOLD, text)

    if command.kind is Kind.DELTA:
        if np.shape(command.action) != (spec.size,):
            return bad(f"the action has shape {np.shape(command.action)}, expected ({spec.size},)")
        numbers = np.asarray(command.action)
        return None if np.isfinite(numbers).all() else bad("the action holds NaN or infinity")
    if len(command.targets) != spec.arms:
        return bad(f"the command has {len(command.targets)} targets for {spec.arms} arms")
    wrong = [text for target in command.targets if (text := _malformed_target(target))]
    return bad(wrong[0]) if wrong else None


def _malformed_target(target: Target) -> str:
    parts = ((target.position, 3), (target.quaternion, 4), (target.velocity, 6), (target.acceleration, 6))
    if any(np.shape(part) != (size,) for part, size in parts):
        return "a target's parts have wrong sizes"
    if not all(np.isfinite(part).all() for part, _ in parts) or not np.isfinite(target.gripper):
        return "a target holds NaN or infinity"
    if abs(np.linalg.norm(target.quaternion) - 1) > 1e-3:
        return "a target's quaternion has not length 1"
    return "" if abs(target.gripper) <= 1 + _RANGE else f"a target's gripper is {target.gripper:.4g}"


class GripperGuard:
    """Keeps a gripper's toggles apart in time."""

    def __init__(self, spacing: float) -> None:
        self.spacing = spacing
        self._sent, self._toggled = 0.0, -(2**62)  # what was last sent (not 0); when it last changed sides

    def limit(self, value: float, stamp: int) -> float:
        """The wanted value, or the last one sent while a toggle is still under way."""
        early = value * self._sent < 0 and abs(stamp - self._toggled) < self.spacing * SECOND
        return self._sent if early else value

    def sent(self, value: float, stamp: int) -> None:
        """This value went to the robot."""
        if value * self._sent < 0:
            self._toggled = stamp
        self._sent = value or self._sent


class MotionFilter:
    """Remembers what it let through, since speeds and jumps refer to that."""

    def __init__(self, settings: SafetySettings, spec: ActionSpec) -> None:
        self.settings = settings
        self.spec = spec.model_copy(update={"limits": settings.profile})
        self.step = SECOND // spec.control_hz  # ns
        self.workspace = Workspace(settings)
        self.grippers = [GripperGuard(settings.gripper_spacing) for _ in range(spec.arms)]
        s = settings
        self._guided = any((s.linear_speed, s.angular_speed, s.box_low, s.clearance, s.tilt, s.robot_model))
        self.reset()

    def reset(self) -> None:
        """The arm is held: the next motion is a first one."""
        self.stamp: int | None = None  # of the last motion let through
        self.last: list[Pose | None] = [None] * self.spec.arms  # where it sent each arm
        self._velocity = [np.zeros(6) for _ in range(self.spec.arms)]

    @property
    def moving(self) -> bool:
        """Whether a motion went through since the last hold."""
        return self.stamp is not None

    def check(self, command: Command, arms: Sequence[ArmWatch]) -> tuple[Command, list[Finding]]:
        """The command as it may go on, and what was found. Nothing is remembered when a finding asks for a hold."""
        finding = malformed(command, self.spec)
        if finding is not None:
            return command, [finding]
        check = self._delta if command.kind is Kind.DELTA else self._pose
        result, poses, findings = check(command, arms)
        if all(finding.reaction < Reaction.HOLD for finding in findings):
            self._remember(result, poses)
        return result, findings

    def _remember(self, command: Command, poses: list[Pose | None]) -> None:
        self.stamp, self.last = command.stamp, poses
        grips = [target.gripper for target in command.targets]
        if command.kind is Kind.POSE:
            self._velocity = [np.array(target.velocity) for target in command.targets]
        elif self.spec.meaning == "osc_pose_delta":
            grips = [float(grip) for grip in command.action[6::7]]
        for gripper, value in zip(self.grippers, grips, strict=False):
            gripper.sent(value, command.stamp)

    def _delta(self, command: Command, arms: Sequence[ArmWatch]) -> tuple[Command, list[Pose | None], list[Finding]]:
        wanted = np.asarray(command.action, dtype=np.float64)
        action, findings = apply_limits(wanted, self.spec), []
        most = float(np.abs(wanted).max())
        if most > 1 + _RANGE:
            findings.append(Finding("range", Reaction.CLIP, f"the action holds {most:.4g}", most, 1.0))
        elif not np.allclose(action, wanted, rtol=0, atol=_RANGE):
            findings.append(Finding("delta", Reaction.CLIP, "the step is longer than the arm may go"))
        poses: list[Pose | None] = [None] * self.spec.arms
        if self.spec.meaning == "osc_pose_delta":
            for i, arm in enumerate(arms):
                old, before, after = action[7 * i : 7 * i + 7], action[: 7 * i], action[7 * i + 7 :]
                new, poses[i], found = self._delta_of(i, old, arm, command.stamp)
                findings += found
                action = action if new is old else np.concatenate([before, new, after])
        same = np.array_equal(action, wanted)
        return command if same else replace(command, action=action), poses, findings

    def _delta_of(
        self, i: int, action: np.ndarray, arm: ArmWatch, stamp: int
    ) -> tuple[np.ndarray, Pose | None, list[Finding]]:
        """One arm's delta (7,): the delta that may go on, and where it leads."""
        findings, spec = [], self.spec
        gripper = self.grippers[i].limit(float(action[6]), stamp)
        if gripper != action[6]:
            findings.append(Finding("gripper", Reaction.CLIP, f"the gripper of {arm.name} toggles too often"))
            action = np.append(action[:6], gripper)
        base = self._base(i, arm) if spec.delta_reference == "commanded" else self._measured(arm)
        if base is None:
            return action, None, findings
        target = pose_target(action, base.position, base.rotation, spec)
        goal = Pose(target.position, target.orientation)
        pose, found = self._guide(base, goal, arm, self._since(stamp)) if self._guided else (goal, [])
        if pose is not goal:
            turn = rotation_of(pose.rotation @ base.rotation.T).as_rotvec()
            delta = [(pose.position - base.position) / spec.position_scale, turn / spec.rotation_scale, action[6:]]
            action = apply_limits(np.concatenate(delta), spec)
        return action, pose, findings + found

    def _pose(self, command: Command, arms: Sequence[ArmWatch]) -> tuple[Command, list[Pose | None], list[Finding]]:
        targets, poses, findings = [], [], []
        for i, (target, arm) in enumerate(zip(command.targets, arms, strict=True)):
            new, pose, found = self._target_of(i, target, arm, command.stamp)
            targets.append(new)
            poses.append(pose)
            findings += found
        same = all(new is old for new, old in zip(targets, command.targets, strict=True))
        return command if same else replace(command, targets=tuple(targets)), poses, findings

    def _target_of(
        self, i: int, target: Target, arm: ArmWatch, stamp: int
    ) -> tuple[Target, Pose | None, list[Finding]]:
        """One arm's absolute target: the target that may go on, and where it leads."""
        goal = Pose(np.asarray(target.position), Rotation.from_quat(target.quaternion).as_matrix())
        base, findings, new = self._base(i, arm), [] if self.moving else self._jump(goal, arm), target
        if findings:
            return target, None, findings
        dt = self._since(stamp)
        if self._guided and base is not None:
            goal_now, found = self._guide(base, goal, arm, dt)
            findings += found
            if goal_now is not goal:
                share = _share(base, goal, goal_now)
                goal, quaternion = goal_now, rotation_of(goal_now.rotation).as_quat()
                new = replace(new, position=goal.position, quaternion=quaternion,
                              velocity=share * new.velocity, acceleration=share * new.acceleration)  # fmt: skip
        new, found = self._derivatives(i, new, arm, dt)
        gripper = self.grippers[i].limit(float(target.gripper), stamp)
        if gripper != target.gripper:
            found.append(Finding("gripper", Reaction.CLIP, f"the gripper of {arm.name} toggles too often"))
            new = replace(new, gripper=gripper)
        return new, goal, findings + found

    def _since(self, stamp: int) -> int:
        """ns that a motion has: since the last one, and never more than a policy's step. A gap is no leave to leap."""
        return self.step if self.stamp is None else min(stamp - self.stamp, self.step)

    def _measured(self, arm: ArmWatch) -> Pose | None:
        return None if arm.state is None else Pose(arm.state.position, arm.state.rotation)

    def _base(self, i: int, arm: ArmWatch) -> Pose | None:
        """Where the arm was last sent, or else where it is."""
        return self.last[i] or self._measured(arm)

    def _jump(self, goal: Pose, arm: ArmWatch) -> list[Finding]:
        """The first absolute target must be where the arm is."""
        s = self.settings
        if not s.jump:
            return []
        if arm.state is None:
            return [Finding("jump", Reaction.HOLD, f"where {arm.name} is has not been measured")]
        off = float(np.linalg.norm(goal.position - arm.state.position))
        turned = angle_between(goal.rotation, arm.state.rotation)
        if off <= s.jump and turned <= s.jump_angle:
            return []
        value, limit = (off, s.jump) if off > s.jump else (turned, s.jump_angle)
        text = f"the first target is {off:.3f} m and {turned:.3f} rad from where {arm.name} is"
        return [Finding("jump", Reaction.HOLD, text, value, limit)]

    def _guide(self, base: Pose, goal: Pose, arm: ArmWatch, dt: int) -> tuple[Pose, list[Finding]]:
        """The goal, or the nearest to it that workspace, speed and joints allow within dt ns from `base`."""
        findings, pose = [], Pose(*self.workspace.project(goal.position, goal.rotation))
        moved = float(np.linalg.norm(pose.position - goal.position)) + angle_between(pose.rotation, goal.rotation)
        if moved > _SAME:
            findings.append(Finding("workspace", Reaction.CLIP, f"a target outside of {arm.name}'s workspace", moved))
        else:
            pose = goal
        shift = pose.position - base.position
        turn = rotation_of(pose.rotation @ base.rotation.T).as_rotvec()
        share, finding = self._share_allowed(shift, turn, arm, max(dt, 1) / SECOND)
        if finding is not None:
            findings.append(finding)
            turned = Rotation.from_rotvec(share * turn).as_matrix() @ base.rotation
            pose = Pose(base.position + share * shift, turned)
        return pose, findings

    def _share_allowed(
        self, shift: np.ndarray, turn: np.ndarray, arm: ArmWatch, dt: float
    ) -> tuple[float, Finding | None]:
        """How much of a step the smallest of all limits leaves, and which that is."""
        s, shares = self.settings, [arm.slowdown(np.concatenate([shift, turn]) / dt)]
        for wanted, limit, what in (
            (float(np.linalg.norm(shift)) / dt, s.linear_speed, "m/s"),
            (float(np.linalg.norm(turn)) / dt, s.angular_speed, "rad/s"),
        ):
            if limit and wanted > limit * (1 + 1e-6):
                text = f"the target asks {wanted:.3g} {what} of {arm.name}"
                shares.append((limit / wanted, Finding("command_speed", Reaction.CLIP, text, wanted, limit)))
        return min(shares, key=lambda pair: pair[0])

    def _derivatives(self, i: int, target: Target, arm: ArmWatch, dt: int) -> tuple[Target, list[Finding]]:
        """A target's velocity and acceleration, shortened to their limits; the velocity may only change so fast."""
        s, seconds, before = self.settings, max(dt, 0) / SECOND, self._velocity[i]
        velocity, acceleration = np.array(target.velocity), np.array(target.acceleration)
        limits = ((slice(0, 3), s.linear_speed, s.linear_acceleration),
                  (slice(3, 6), s.angular_speed, s.angular_acceleration))  # fmt: skip
        for part, speed, most in limits:
            velocity[part] = _shorten(velocity[part], speed)
            acceleration[part] = _shorten(acceleration[part], most)
            if most:
                velocity[part] = before[part] + _shorten(velocity[part] - before[part], most * seconds, always=True)
        if np.allclose(velocity, target.velocity, rtol=0, atol=_SAME) and np.allclose(
            acceleration, target.acceleration, rtol=0, atol=_SAME
        ):
            return target, []
        finding = Finding("acceleration", Reaction.CLIP, f"a target of {arm.name} is too fast or changes too fast")
        return replace(target, velocity=velocity, acceleration=acceleration), [finding]


def _share(base: Pose, goal: Pose, allowed: Pose) -> float:
    """How much of the way from `base` to `goal` is left, for the velocity that goes with it."""
    whole = float(np.linalg.norm(goal.position - base.position)) + angle_between(goal.rotation, base.rotation)
    left = float(np.linalg.norm(allowed.position - base.position)) + angle_between(allowed.rotation, base.rotation)
    return min(1.0, left / whole) if whole > 0 else 1.0


def _shorten(vector: np.ndarray, limit: float, always: bool = False) -> np.ndarray:
    """The vector, no longer than `limit`; a limit of 0 means none, unless `always`."""
    length = float(np.linalg.norm(vector))
    return vector * (limit / length) if (limit or always) and length > limit else vector
