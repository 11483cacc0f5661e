"""One arm as measured: pose in the workspace, speed, joints, singularity, contact, tracking. What the monitor knows
of where it is; `slowdown` says how much of a wanted motion its joints allow."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.rotations import rotation_of

from ..records import SECOND, ArmState
from .checks import Finding, Lasting, Reaction, above
from .kinematics import LIMITS, forward
from .settings import SafetySettings
from .workspace import Workspace

_STEP = 1e-3  # m, shorter motions do not count as path: a sensor's noise is no path
_LEAST_SPEED = 0.1  # share that a singularity leaves: the arm must be able to get out of its neighbourhood
_STILL = 0.01  # rad/s, a joint slower than this does not go towards its end
LONGEST = 200  # characters of what somebody else says
_DAMPING = 1e-3  # of the pseudo-inverse: predicted joint speeds stay finite at a singularity


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """rad between two orientations (3, 3)."""
    return float(rotation_of(a @ b.T).magnitude())


def well_formed(state: ArmState) -> bool:
    """Whether all sizes are right, all numbers finite, and the rotation is one."""
    parts = ((state.q, (7,)), (state.dq, (7,)), (state.position, (3,)), (state.rotation, (3, 3)), (state.wrench, (6,)))
    if not all(np.shape(part) == shape and np.isfinite(part).all() for part, shape in parts):
        return False
    skewed = np.abs(state.rotation @ state.rotation.T - np.eye(3)).max() > 1e-3
    return not skewed and bool(np.linalg.det(state.rotation) > 0)


class ArmWatch:
    """The last state of one arm and what is wrong with it."""

    def __init__(self, index: int, settings: SafetySettings) -> None:
        self.settings, self.name = settings, f"arm{index}"
        self.limits = LIMITS.get(settings.robot_model)
        self._workspace = Workspace(settings)
        self._base = Rotation.from_euler("z", settings.base_yaw[index]).as_matrix()
        self.forget()
        self.path = 0.0  # m, since `start_path`

    def forget(self) -> None:
        """As if nothing had been measured yet."""
        self.state: ArmState | None = None
        self._findings: list[Finding] = []
        self._wrench = np.zeros(6)
        self._jacobian = np.zeros((6, 7))
        self._condition = 0.0
        self._off_track = Lasting()

    def start_path(self) -> None:
        """Of a new trial."""
        self.path = 0.0

    def update(self, state: ArmState) -> None:
        """Take a well-formed measurement."""
        self._count_path(state)
        self._filter(state)
        self.state = state
        self._findings = [*self._robot(), *self._contact(), *self._place(), *self._joints()]

    def findings(self) -> list[Finding]:
        """What is wrong with the last measurement."""
        return self._findings

    def _count_path(self, state: ArmState) -> None:
        if self.state is None:
            self._anchor = state.position
        step = float(np.linalg.norm(state.position - self._anchor))
        if step > _STEP:
            self.path, self._anchor = self.path + step, state.position

    def _filter(self, state: ArmState) -> None:
        """First-order low-pass of the external wrench."""
        if self.state is None:
            self._wrench = np.array(state.wrench, dtype=np.float64)
            return
        dt = max(0, state.stamp - self.state.stamp) / SECOND
        self._wrench += (1 - np.exp(-2 * np.pi * self.settings.force_cutoff * dt)) * (state.wrench - self._wrench)

    def _robot(self) -> list[Finding]:
        if self.state.ok:
            return []
        return [Finding("robot", Reaction.STOP, f"{self.name} reports {self.state.fault[:LONGEST] or 'a fault'}")]

    def stopped(self) -> list[Finding]:
        """The robot's own watchdog has stopped the arm: it waits until a person arms anew, whoever believes it moves.

        Held and not latched at once: what was measured before the watchdog heard of the arming may come after it.
        """
        if self.state is None or not self.state.ok or not self.state.fault:
            return []
        return [Finding("watchdog", Reaction.HOLD, f"{self.name} has stopped by itself: {self.state.fault[:LONGEST]}")]

    def _contact(self) -> list[Finding]:
        s, force, torque = self.settings, np.linalg.norm(self._wrench[:3]), np.linalg.norm(self._wrench[3:])
        return [
            *above("force", float(force), f"external force on {self.name} in N", hold=s.force_hold, stop=s.force_stop),
            *above("torque", float(torque), f"external torque on {self.name} in Nm", stop=s.torque_stop),
        ]

    def _place(self) -> list[Finding]:
        out = self._workspace.outside(self.state.position)
        return above("outside", out, f"{self.name} is outside of its workspace by m", stop=self.settings.outside_stop)

    def _joints(self) -> list[Finding]:
        """Ends, speeds and singularity, as measured."""
        if self.limits is None:
            return []
        s, state, name = self.settings, self.state, self.name
        self._jacobian = forward(state.q, s.tool_length)[2]
        self._condition = float(np.linalg.cond(self._jacobian))
        twist = self._jacobian @ state.dq
        share = float((np.abs(state.dq) / self.limits.speed).max())
        linear, angular = float(np.linalg.norm(twist[:3])), float(np.linalg.norm(twist[3:]))
        margin = float(np.minimum(state.q - self.limits.low, self.limits.high - state.q).min())
        findings = [
            *above("speed", linear, f"{name} in m/s", hold=s.linear_speed, stop=s.linear_stop),
            *above("speed", angular, f"{name} in rad/s", hold=s.angular_speed, stop=s.angular_stop),
            *above("joint_speed", share, f"share of a joint's largest speed, {name}", hold=s.joint_speed_hold,
                   stop=s.joint_speed_stop),
            *above("singular", self._condition, f"condition number of {name}", stop=s.singular_stop),
        ]  # fmt: skip
        if s.margin_stop and margin < s.margin_stop:
            text = f"{name} is {margin:.3f} rad from a joint's end"
            findings.append(Finding("joint_margin", Reaction.STOP, text, margin, s.margin_stop))
        return findings

    def slowdown(self, twist: np.ndarray) -> tuple[float, Finding | None]:
        """How much of a wanted motion its joints allow: a share in [0, 1] and, below 1, the check behind it.

        Joints are slowed only towards their end, so that a motion away from it passes.

        Args:
            twist: (6,) m/s and rad/s in the world frame.
        """
        if self.limits is None or self.state is None:
            return 1.0, None
        s, j = self.settings, self._jacobian
        twist = np.concatenate([self._base.T @ twist[:3], self._base.T @ twist[3:]])
        dq = j.T @ np.linalg.solve(j @ j.T + _DAMPING**2 * np.eye(6), twist)
        shares = [(1.0, None), self._slow_singular(), self._slow_ends(dq)]
        fastest = float((np.abs(dq) / self.limits.speed).max())
        if s.joint_speed_hold and fastest > s.joint_speed_hold:
            text = f"the motion would turn a joint of {self.name} at {fastest:.2f} of its largest speed"
            shares.append((s.joint_speed_hold / fastest,
                           Finding("joint_speed", Reaction.CLIP, text, fastest, s.joint_speed_hold)))  # fmt: skip
        return min(shares, key=lambda pair: pair[0])

    def _slow_singular(self) -> tuple[float, Finding | None]:
        s = self.settings
        if not s.singular_slow or self._condition <= s.singular_slow:
            return 1.0, None
        text = f"{self.name} is near a singularity, condition number {self._condition:.1f}"
        share = 1 - (self._condition - s.singular_slow) / (s.singular_stop - s.singular_slow)
        return max(_LEAST_SPEED, share), Finding("singular", Reaction.CLIP, text, self._condition, s.singular_slow)

    def _slow_ends(self, dq: np.ndarray) -> tuple[float, Finding | None]:
        s, q = self.settings, self.state.q
        if not s.margin_hold:
            return 1.0, None
        ahead = np.where(dq > 0, self.limits.high - q, q - self.limits.low)  # (7,) rad to the end each joint goes to
        margin = float(np.where(np.abs(dq) > _STILL, ahead, np.inf).min())
        if margin >= s.margin_slow:
            return 1.0, None
        text = f"{self.name} goes towards a joint's end, {margin:.3f} rad away"
        if margin < s.margin_hold:
            return 0.0, Finding("joint_margin", Reaction.HOLD, text, margin, s.margin_hold)
        share = (margin - s.margin_hold) / (s.margin_slow - s.margin_hold)
        return share, Finding("joint_margin", Reaction.CLIP, text, margin, s.margin_slow)

    def track(self, position: np.ndarray, rotation: np.ndarray, now: int) -> list[Finding]:
        """How far the arm is from where it was sent, and for how long."""
        s, state = self.settings, self.state
        if not s.tracking or state is None:
            return []
        off, turned = float(np.linalg.norm(position - state.position)), angle_between(rotation, state.rotation)
        lasted = self._off_track.update(off > s.tracking or turned > s.tracking_angle, now)
        if lasted <= s.tracking_time or lasted == 0:
            return []
        text = f"{self.name} has been {off:.3f} m and {turned:.2f} rad from its target for {lasted:.2f} s"
        by_angle = off <= s.tracking
        value, limit = (turned, s.tracking_angle) if by_angle else (off, s.tracking)
        return [Finding("tracking", Reaction.STOP, text, value, limit)]

    def untrack(self) -> None:
        """There is no target any more."""
        self._off_track = Lasting()
