"""SciPy's rotations, fast enough for loops at 200 Hz."""

from __future__ import annotations

import inspect

import numpy as np
from scipy.spatial.transform import Rotation

_TRUST = {"assume_valid": True} if "assume_valid" in inspect.signature(Rotation.from_matrix).parameters else {}
"""From SciPy 1.17 on; looking whether a matrix is one takes three quarters of the time there."""


def rotation_of(matrix: np.ndarray) -> Rotation:
    """Of a matrix (3, 3) that is a rotation already, to rounding: a product of rotations, a pose of a controller."""
    return Rotation.from_matrix(matrix, **_TRUST)
