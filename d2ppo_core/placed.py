"""A pose as files hold it."""

from __future__ import annotations

import math

from pydantic import model_validator

from .frozen import Frozen

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Placed(Frozen):
    """Something with a pose in a frame that its owner names."""

    position: Vector  # m
    quaternion: Quaternion  # xyzw

    @model_validator(mode="after")
    def _unit(self) -> Placed:
        length = math.hypot(*self.quaternion)
        if abs(length - 1) > 0.01:
            raise ValueError(f"the quaternion {self.quaternion} has length {length:.3f}; it must be 1 (xyzw)")
        return self
