"""Raw deltas -> the reference trajectory that the pose modes command.

Each step aims the nominal closed-loop response (`d2ppo_core.response`) at a new goal, from where the last command left
the reference and never from the measured pose: so neither a new chunk nor a late tick makes it jump. Only where the
arm is too far from its reference (blocked, pushed) the reference starts anew at the measured pose.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.action import pose_target
from d2ppo_core.contract import ActionSpec
from d2ppo_core.response import Motion, advance, at_rest
from d2ppo_core.rotations import rotation_of

from ..records import SECOND, ArmState, Chunk, Target
from .counts import Border, Counts
from .gripper import Gripper
from .schedule import Schedule, Slot
from .settings import ExecutorSettings, nanoseconds


class Reference:
    """One arm's reference: its motion and the goal it is on its way to."""

    def __init__(self, position: np.ndarray, rotation: np.ndarray) -> None:
        self.motion = at_rest(position, rotation)
        self.goal = self.motion.position, self.motion.rotation

    def aim(self, action: np.ndarray, spec: ActionSpec) -> None:
        """A step (7,) begins: its delta counts from the reference itself, or from the last goal (`delta_reference`)."""
        base = (self.motion.position, self.motion.rotation) if spec.delta_reference == "measured" else self.goal
        target = pose_target(action, *base, spec)
        self.goal = target.position, target.orientation
        self.move(0)

    def move(self, duration: int) -> None:
        """Go on for `duration` ns."""
        self.motion = advance(self.motion, *self.goal, duration / SECOND)


class Follower:
    """The references and grippers of all arms, moved along a schedule."""

    def __init__(self, settings: ExecutorSettings, spec: ActionSpec) -> None:
        self.settings, self.spec = settings, spec
        self.step = round(SECOND / spec.control_hz)
        self.measured: dict[int, ArmState] = {}  # by arm
        dwell = nanoseconds(settings.gripper_dwell)
        self.grippers = [Gripper(settings.gripper_close, settings.gripper_open, dwell) for _ in range(spec.arms)]
        self.clear()

    def clear(self) -> None:
        """Forget where the references are; they begin again at the measured poses, at rest."""
        self.references: list[Reference] = []
        self.time = 0  # that the references are at
        self.present: tuple[Chunk, int] | None = None  # the newest chunk, and its step
        self.last: tuple[int, int, list[Motion]] | None = None  # last command: time, chunk, motions
        self.smooth = np.zeros(7 * self.spec.arms)
        for gripper in self.grippers:
            gripper.reset()

    def on_arm(self, index: int, arm: ArmState) -> None:
        """Keep what arm `index` measured last."""
        if index < self.spec.arms and np.isfinite(arm.position).all() and np.isfinite(arm.rotation).all():
            self.measured[index] = arm

    def missing(self, since: int) -> int | None:
        """The first arm of which nothing is known that was measured at `since` or later."""
        return next(
            (n for n in range(self.spec.arms) if n not in self.measured or self.measured[n].stamp < since), None
        )

    def follow(self, schedule: Schedule, grid: int, now: int, counts: Counts) -> bool:
        """Move on to `now`, each step on the grid (from `grid` on) beginning on its way; False while none has begun."""
        newest = now - (now - grid) % self.step  # step that runs at `now` began here
        if not self.references:
            if not schedule.at(now):
                return False
            self._anchor(range(self.spec.arms))
            self.time = newest - 1
        skipped_to = max(self.time, newest - 2 * self.step)  # after a pause: go on, do not catch up
        counts.late += sum(bool(schedule.at(t)) for t in self._borders(grid, self.time, skipped_to))
        self.time = skipped_to
        for border in self._borders(grid, self.time, now):
            self._move(border)
            self._begin(schedule, border, counts)
        self._move(now)
        lost = [n for n, reference in enumerate(self.references) if self._far(reference.motion, self.measured[n])]
        if lost:
            counts.reanchored += len(lost)
            self._anchor(lost)
            if schedule.at(now):
                self._aim(lost)
        self._count_border(now, counts)
        return True

    def targets(self) -> tuple[Target, ...]:
        """Every arm's reference as a command."""
        found = []
        for reference, gripper in zip(self.references, self.grippers, strict=True):
            motion, quaternion = reference.motion, rotation_of(reference.motion.rotation).as_quat()
            closed = 0.0 if gripper.state is None else gripper.state
            found.append(Target(motion.position, quaternion, motion.velocity, motion.acceleration, closed))
        return tuple(found)

    def _borders(self, grid: int, after: int, until: int) -> range:
        """The times on the grid in (after, until]."""
        return range(after + self.step - (after - grid) % self.step, until + 1, self.step)

    def _begin(self, schedule: Schedule, border: int, counts: Counts) -> None:
        """The step that begins at `border`; without one the references settle on their goals."""
        found = schedule.at(border)
        if not found:
            return
        slot, step = found[-1]
        self.present = slot.chunk, step
        counts.steps += 1
        action = self._blend(found) if self.settings.mode == "ensemble" else slot.chunk.actions[step]
        share = self.step / SECOND / (self.settings.smoothing + self.step / SECOND)  # delays by `smoothing`
        self.smooth = self.smooth + share * (action - self.smooth)
        self._aim(range(self.spec.arms))
        if self.spec.gripper != "none":
            for n, gripper in enumerate(self.grippers):
                gripper.update(float(action[7 * n + 6]), border)

    def _blend(self, found: list[tuple[Slot, int]]) -> np.ndarray:
        """Temporal ensembling (Zhao et al. 2023): the mean of every chunk's action, the oldest with most weight."""
        weights = np.exp(-self.settings.ensemble_decay * np.arange(len(found)))
        return weights @ np.stack([slot.chunk.actions[step] for slot, step in found]) / weights.sum()  # [n] @ [n, Da]

    def _aim(self, arms: range | list[int]) -> None:
        for n in arms:
            self.references[n].aim(self.smooth[7 * n : 7 * n + 7], self.spec)

    def _anchor(self, arms: range | list[int]) -> None:
        """Start these arms' references at rest where the arms are."""
        self.references = self.references or [None] * self.spec.arms  # type: ignore[list-item]
        for n in arms:
            self.references[n] = Reference(self.measured[n].position, self.measured[n].rotation)

    def _move(self, time: int) -> None:
        for reference in self.references:
            reference.move(time - self.time)
        self.time = time

    def _far(self, motion: Motion, arm: ArmState) -> bool:
        return bool(
            np.linalg.norm(motion.position - arm.position) > self.settings.reanchor_distance
            or _angle(motion.rotation @ arm.rotation.T) > self.settings.reanchor_angle
        )

    def _count_border(self, now: int, counts: Counts) -> None:
        """Compare this command with the last one, where the chunk has changed between them."""
        assert self.present is not None
        chunk, motions = self.present[0].index, [reference.motion for reference in self.references]
        if self.last is not None and self.last[1] != chunk:
            seconds = (now - self.last[0]) / SECOND
            jumps = np.array([_jump(a, b, seconds) for a, b in zip(self.last[2], motions, strict=True)])
            counts.borders.append(Border(now, chunk, *map(float, jumps.max(0))))
        self.last = now, chunk, motions


def _jump(before: Motion, after: Motion, seconds: float) -> tuple[float, float, float, float]:
    """How far `after` is, in pose and velocity, from `before` carried on for `seconds` at its velocity."""
    turned = Rotation.from_rotvec(before.velocity[3:] * seconds).as_matrix() @ before.rotation
    change = after.velocity - before.velocity
    return (
        float(np.linalg.norm(after.position - before.position - before.velocity[:3] * seconds)),
        _angle(after.rotation @ turned.T),
        float(np.linalg.norm(change[:3])),
        float(np.linalg.norm(change[3:])),
    )


def _angle(rotation: np.ndarray) -> float:
    return float(rotation_of(rotation).magnitude())
