"""Forward kinematics and Jacobian of the Franka Panda and FR3 (same lengths), and their joint limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class JointLimits:
    """Of one arm model: (7,) each."""

    low: np.ndarray  # rad
    high: np.ndarray  # rad
    speed: np.ndarray  # rad/s


# Franka's published limits.
LIMITS = {
    "panda": JointLimits(
        low=np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]),
        high=np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]),
        speed=np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61]),
    ),
    "fr3": JointLimits(
        low=np.array([-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508]),
        high=np.array([2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508]),
        speed=np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26]),
    ),
}

# Craig's modified Denavit-Hartenberg parameters of joints 1 to 7: a (m), d (m), alpha (rad).
_HALF = np.pi / 2
_DH = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -_HALF),
    (0.0, 0.316, _HALF),
    (0.0825, 0.0, _HALF),
    (-0.0825, 0.384, -_HALF),
    (0.0, 0.0, _HALF),
    (0.088, 0.0, _HALF),
)


def forward(q: np.ndarray, tool: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pose and Jacobian, in the arm's base frame, of the point `tool` m ahead of joint 7 along its axis.

    Args:
        q: (7,) rad.
    Returns:
        position (3,) m; rotation (3, 3) of joint 7's frame; Jacobian (6, 7): m/s, then rad/s, per rad/s.
    """
    frame, origins, axes = np.eye(4), np.empty((7, 3)), np.empty((7, 3))
    for joint, ((a, d, alpha), angle) in enumerate(zip(_DH, q, strict=True)):
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(angle), np.sin(angle)
        frame = frame @ np.array(
            [[ct, -st, 0, a], [st * ca, ct * ca, -sa, -d * sa], [st * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
        )
        origins[joint], axes[joint] = frame[:3, 3], frame[:3, 2]
    position = frame[:3, 3] + tool * frame[:3, 2]
    return position, frame[:3, :3], np.vstack([np.cross(axes, position - origins).T, axes.T])
