"""How a camera sees: its matrix and lens, and projecting through them."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from pydantic import Field, model_validator

from d2ppo_core.frozen import Frozen, Positive

LENGTHS = (5, 8)  # coefficients of the models plumb_bob and rational_polynomial
MODELS = {5: "plumb_bob", 8: "rational_polynomial"}


class Intrinsics(Frozen):
    """As in ROS's CameraInfo: matrix and distortion of one picture size."""

    width: Positive  # pixels
    height: Positive  # pixels
    matrix: Annotated[tuple[float, ...], Field(min_length=9, max_length=9)]  # row by row, pixels
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)  # k1 k2 p1 p2 k3 [k4 k5 k6]

    @model_validator(mode="after")
    def _plausible(self) -> Intrinsics:
        if len(self.distortion) not in LENGTHS:
            raise ValueError(f"{len(self.distortion)} distortion coefficients; there must be 5 or 8")
        if self.matrix[0] <= 0 or self.matrix[4] <= 0 or self.matrix[6:] != (0.0, 0.0, 1.0):
            raise ValueError(
                "the camera matrix needs positive focal lengths and a last row of 0 0 1; calibrate the camera"
            )
        return self

    @property
    def k(self) -> np.ndarray:
        """(3, 3) pixels."""
        return np.array(self.matrix).reshape(3, 3)

    @property
    def d(self) -> np.ndarray:
        """(5,) or (8,)."""
        return np.array(self.distortion)

    @property
    def model(self) -> str:
        """ROS's name of the lens's model."""
        return MODELS[len(self.distortion)]

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        return self.width, self.height

    @property
    def field_of_view(self) -> float:
        """Degrees, from the picture's upper to its lower edge, without the lens's distortion."""
        f, c = self.matrix[4], self.matrix[5] + 0.5  # pixel 0 reaches from -0.5 to 0.5
        return float(np.degrees(np.arctan2(c, f) + np.arctan2(self.height - c, f)))


def intrinsics(size: tuple[int, int], matrix: np.ndarray, distortion: np.ndarray) -> Intrinsics:
    """From OpenCV's arrays."""
    return Intrinsics(
        width=int(size[0]), height=int(size[1]), matrix=tuple(np.asarray(matrix, dtype=float).ravel().tolist()),
        distortion=tuple(np.asarray(distortion, dtype=float).ravel().tolist()),
    )  # fmt: skip


def project(sees: Intrinsics, camera_thing: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, 2) pixels of (n, 3) points of a thing at the pose `camera_thing`, (4, 4)."""
    rotation, _ = cv2.Rodrigues(camera_thing[:3, :3])
    pixels, _ = cv2.projectPoints(points, rotation, camera_thing[:3, 3], sees.k, sees.d)
    return pixels.reshape(-1, 2)
