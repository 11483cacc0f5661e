"""Rigid poses as (4, 4) matrices, batches as (n, 4, 4). Quaternions are xyzw; q and -q are the same rotation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core import placed


class Placed(placed.Placed):
    """A pose as files hold it, as a matrix."""

    @property
    def matrix(self) -> np.ndarray:
        """(4, 4)."""
        return pose(self.position, Rotation.from_quat(self.quaternion))


IDENTITY = Placed(position=(0.0, 0.0, 0.0), quaternion=(0.0, 0.0, 0.0, 1.0))


def pose(position: Sequence[float] | np.ndarray, rotation: Rotation | np.ndarray) -> np.ndarray:
    """(4, 4) from (3,) m and a rotation, given as such or as (3,) axis-angle or (3, 3)."""
    if not isinstance(rotation, Rotation):
        rotation = np.asarray(rotation, dtype=np.float64)
        rotation = (
            Rotation.from_matrix(rotation) if rotation.shape == (3, 3) else Rotation.from_rotvec(rotation.ravel())
        )
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.as_matrix(), np.ravel(position)
    return matrix


def placed(matrix: np.ndarray) -> Placed:
    """(4, 4) as files hold it, with w >= 0."""
    quaternion = Rotation.from_matrix(matrix[:3, :3]).as_quat(canonical=True)
    return Placed(position=tuple(matrix[:3, 3].tolist()), quaternion=tuple(quaternion.tolist()))


def inverse(matrices: np.ndarray) -> np.ndarray:
    """(..., 4, 4): `b_a` from `a_b`."""
    back = np.zeros_like(matrices)
    turned = np.swapaxes(matrices[..., :3, :3], -1, -2)
    back[..., :3, :3], back[..., 3, 3] = turned, 1.0
    back[..., :3, 3] = -(turned @ matrices[..., :3, 3, None])[..., 0]
    return back


def vector(matrix: np.ndarray) -> np.ndarray:
    """(6,): axis-angle (rad), then position (m). `from_vector` is its inverse."""
    return np.concatenate([Rotation.from_matrix(matrix[:3, :3]).as_rotvec(), matrix[:3, 3]])


def from_vector(six: np.ndarray) -> np.ndarray:
    """(4, 4)."""
    return pose(six[3:], six[:3])


def apart(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """How far two poses of one frame are apart: (m, degrees)."""
    turn = Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3])), float(np.degrees(turn))


def mean(matrices: np.ndarray) -> np.ndarray:
    """(4, 4): mean of (n, 4, 4)."""
    return pose(matrices[:, :3, 3].mean(0), Rotation.from_matrix(matrices[:, :3, :3]).mean())


def spread(matrices: np.ndarray) -> tuple[float, float]:
    """Root mean square distance of (n, 4, 4) from their mean: (m, degrees)."""
    middle = mean(matrices)
    away = np.array([apart(matrix, middle) for matrix in matrices])  # (n, 2)
    return tuple(np.sqrt((away**2).mean(0)).tolist())
