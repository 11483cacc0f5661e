"""How a camera sees: its matrix and lens, and projecting through them."""

from __future__ import annotations

import cv2
import numpy as np

from d2ppo_core.lens import Intrinsics

__all__ = ["Intrinsics", "intrinsics", "project"]


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
