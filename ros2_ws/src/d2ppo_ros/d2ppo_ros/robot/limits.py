"""What each arm model may do, stated explicitly: the client library's own table has the two models' numbers swapped.

franky 2.0 gives an FR3 build the Panda's maxima and the other way round, which would allow a Panda 2.62 to 5.26 rad/s
where it may do 2.175. So every limit is set by us, to a share of Franka's published numbers, before anything moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from d2ppo_core.errors import UserError

MODELS = ("panda", "fr3")


@dataclass(frozen=True)
class DynamicLimits:
    """Of one arm model; scalars, or (7,) for the joints. The names are those of the client library's limits."""

    translation_velocity: float  # m/s
    translation_acceleration: float  # m/s^2
    translation_jerk: float  # m/s^3
    rotation_velocity: float  # rad/s
    rotation_acceleration: float  # rad/s^2
    rotation_jerk: float  # rad/s^3
    elbow_velocity: float  # rad/s
    elbow_acceleration: float  # rad/s^2
    elbow_jerk: float  # rad/s^3
    joint_velocity: tuple[float, ...]  # rad/s
    joint_acceleration: tuple[float, ...]  # rad/s^2
    joint_jerk: tuple[float, ...]  # rad/s^3


# Franka's documentation of the robot's limits (2026-05) and libfranka's rate_limiting.h.
TABLE = {
    "panda": DynamicLimits(
        translation_velocity=1.7, translation_acceleration=13.0, translation_jerk=6500.0,
        rotation_velocity=2.5, rotation_acceleration=25.0, rotation_jerk=12500.0,
        elbow_velocity=2.175, elbow_acceleration=10.0, elbow_jerk=5000.0,
        joint_velocity=(2.175,) * 4 + (2.61,) * 3,
        joint_acceleration=(15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
        joint_jerk=(7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
    ),
    "fr3": DynamicLimits(
        translation_velocity=3.0, translation_acceleration=9.0, translation_jerk=4500.0,
        rotation_velocity=2.5, rotation_acceleration=17.0, rotation_jerk=8500.0,
        elbow_velocity=1.5, elbow_acceleration=10.0, elbow_jerk=5000.0,  # documentation: 2.62 rad/s; header: 1.5
        joint_velocity=(2.62,) * 4 + (5.26, 4.18, 5.26),
        joint_acceleration=(10.0,) * 7,
        joint_jerk=(5000.0,) * 7,
    ),
}  # fmt: skip

TORQUE = np.array([87.0] * 4 + [12.0] * 3)  # Nm, both models
TORQUE_RATE = 1000.0  # Nm/s, both models

# FR3: a joint's largest speed falls towards its end, min(dq_max, max(0, -offset + sqrt(2 deceleration distance))).
_FR3_OFFSET = np.array([0.6599, 0.2517, 0.2, 0.3533, 0.5757, 0.4878, 0.4628])  # rad/s
_FR3_DECELERATION = np.array([6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0])  # rad/s^2


def require_model(model: str) -> str:
    """A model that the table knows."""
    if model not in TABLE:
        raise UserError(f"robot_model={model} is no arm that is known here; choose one of {', '.join(MODELS)}")
    return model


def share_of(model: str, fraction: float) -> DynamicLimits:
    """The table's numbers times a fraction in (0, 1]."""
    table = TABLE[require_model(model)]
    if not 0.0 < fraction <= 1.0:
        raise UserError(f"dynamics_fraction={fraction} is no share; give more than 0 and at most 1")
    return DynamicLimits(**{
        field.name: tuple(fraction * number for number in value) if isinstance(value, tuple) else fraction * value
        for field in fields(table) for value in [getattr(table, field.name)]
    })  # fmt: skip


def below(wanted: DynamicLimits, largest: Mapping[str, Any]) -> dict[str, Any]:
    """By name min(wanted, the largest that the client library takes)."""
    chosen: dict[str, Any] = {}
    for field in fields(wanted):
        value, most = getattr(wanted, field.name), largest[field.name]
        chosen[field.name] = np.minimum(value, most).tolist() if isinstance(value, tuple) else min(value, float(most))
    return chosen


def set_limits(robot: Any, model: str, fraction: float) -> dict[str, Any]:
    """Set every dynamic limit of a connected client object; what was set, by name. Only while no motion runs."""
    found = {field.name: getattr(robot, f"{field.name}_limit") for field in fields(DynamicLimits)}
    chosen = below(share_of(model, fraction), {name: limit.max for name, limit in found.items()})
    for name, limit in found.items():
        limit.set(chosen[name])
    return chosen


def fr3_joint_speed(q: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest speed (7,) rad/s of an FR3's joints at q (7,) rad, towards the lower (negative) and the upper end."""
    most = np.array(TABLE["fr3"].joint_velocity)

    def speed(distance: np.ndarray) -> np.ndarray:
        return np.clip(-_FR3_OFFSET + np.sqrt(np.maximum(0.0, 2 * _FR3_DECELERATION * distance)), 0.0, most)

    return -speed(q - low), speed(high - q)
