"""A rigid pose, and averages of poses. Quaternions xyzw; q and -q are the same rotation everywhere here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class Pose:
    """Where frame B stands in frame A: maps a point of B to A. `a_b @ b_c` is `a_c`."""

    position: np.ndarray  # (3,) m
    rotation: Rotation

    @staticmethod
    def of(position: Sequence[float], quaternion: Sequence[float]) -> Pose:
        """From (3,) m and (4,) xyzw of any length but zero."""
        return Pose(np.array(position, dtype=np.float64), Rotation.from_quat(np.array(quaternion, dtype=np.float64)))

    def __matmul__(self, other: Pose) -> Pose:
        return Pose(self.position + self.rotation.apply(other.position), self.rotation * other.rotation)

    def inverse(self) -> Pose:
        back = self.rotation.inv()
        return Pose(-back.apply(self.position), back)

    def quaternion(self) -> np.ndarray:
        """(4,) xyzw, of either sign."""
        return self.rotation.as_quat()

    def apart(self, other: Pose) -> tuple[float, float]:
        """How far two poses of one frame are apart: (m, rad)."""
        turn = float((self.rotation.inv() * other.rotation).magnitude())
        return float(np.linalg.norm(self.position - other.position)), turn


def average_quaternions(quaternions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(4,) unit quaternion nearest to all (n, 4): the top eigenvector of sum w q q^T, blind to the sign of each q.

    It minimises the weighted sum of squared chordal distances between rotations.
    """
    unit = quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)
    _, vectors = np.linalg.eigh((weights[:, None] * unit).T @ unit)  # (4, n) @ (n, 4)
    return vectors[:, -1]  # eigenvalues ascend


def average(poses: Sequence[Pose], weights: Sequence[float]) -> Pose:
    """Weighted mean of poses; weights are positive, of any sum."""
    w = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    position = w @ np.array([pose.position for pose in poses])
    return Pose.of(position, average_quaternions(np.array([pose.quaternion() for pose in poses]), w))
