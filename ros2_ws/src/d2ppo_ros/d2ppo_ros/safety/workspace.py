"""Where targets may be: a box, a floor, and a cone of the tool's axis around straight down. World frame."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

_DOWN = np.array([0.0, 0.0, -1.0])


class Bounds(Protocol):
    """The parameters that say it: of the safety node, and of an arm's driver."""

    box_low: list[float]
    box_high: list[float]
    table: float
    clearance: float
    tilt: float


class Workspace:
    """Targets are brought to the nearest point inside."""

    def __init__(self, settings: Bounds) -> None:
        self.low = np.array(settings.box_low or [-np.inf] * 3)
        self.high = np.array(settings.box_high or [np.inf] * 3)
        if settings.clearance:
            self.low[2] = max(self.low[2], settings.table + settings.clearance)
        self.tilt = settings.tilt

    def project(self, position: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest pose inside; what is inside comes back as it is."""
        return np.clip(position, self.low, self.high), self._upright(rotation)

    def outside(self, position: np.ndarray) -> float:
        """m by which a position is outside of the box or below the floor; 0 inside."""
        return float(max(0.0, *(self.low - position), *(position - self.high)))

    def _upright(self, rotation: np.ndarray) -> np.ndarray:
        axis = rotation[:, 2]
        angle = float(np.arccos(np.clip(axis @ _DOWN, -1.0, 1.0)))
        if not self.tilt or angle <= self.tilt + 1e-9:
            return rotation
        about = np.cross(axis, _DOWN)
        length = np.linalg.norm(about)
        about = about / length if length > 1e-9 else rotation[:, 0]  # straight up: any horizontal axis will do
        return Rotation.from_rotvec((angle - self.tilt) * about).as_matrix() @ rotation
