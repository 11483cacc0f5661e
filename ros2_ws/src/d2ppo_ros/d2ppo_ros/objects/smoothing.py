"""A low-pass filter of poses, and a quaternion sign that never jumps."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

from ..records import SECOND
from .poses import Pose


class PoseFilter:
    """One pole: after a step the rest of the way shrinks by exp(-2 pi cutoff t), however irregular the samples are."""

    def __init__(self, cutoff: float, gap: float) -> None:
        """`cutoff` in Hz, 0 for none; after `gap` seconds without a pose it starts anew at the next."""
        self.cutoff, self.gap = cutoff, round(gap * SECOND)
        self.pose: Pose | None = None
        self._stamp = 0

    def reset(self) -> None:
        self.pose = None

    def update(self, stamp: int, pose: Pose) -> Pose:
        """The filtered pose at `stamp` (ns). Time that jumps back starts it anew."""
        passed = stamp - self._stamp
        if self.pose is None or passed < 0 or passed > self.gap or self.cutoff == 0:
            self.pose = pose
        else:
            share = -math.expm1(-2 * math.pi * self.cutoff * passed / SECOND)
            turn = (self.pose.rotation.inv() * pose.rotation).as_rotvec()
            self.pose = Pose(
                self.pose.position + share * (pose.position - self.pose.position),
                self.pose.rotation * Rotation.from_rotvec(share * turn),  # slerp
            )
        self._stamp = stamp
        return self.pose


class QuaternionSign:
    """The simulator's sign: it places an object with a turn about z by 0 to 2 pi, so z >= 0; from then on its
    integration is continuous, and the sign follows."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None

    def reset(self) -> None:
        """A new trial: the object was placed anew."""
        self._last = None

    def __call__(self, quaternion: np.ndarray) -> np.ndarray:
        """(4,) xyzw with the sign that continues the last one."""
        against = quaternion[2] if self._last is None else float(self._last @ quaternion)
        self._last = -quaternion if against < 0 else quaternion
        return self._last
