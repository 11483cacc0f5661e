"""What changed between two calibrations of one camera."""

from __future__ import annotations

import numpy as np

from d2ppo_core.errors import UserError

from .calibration import Calibration
from .camera import Intrinsics, project
from .checks import Check
from .poses import apart

AHEAD = 0.6  # m: how far before the camera things are that matter


def compare(old: Calibration, new: Calibration) -> list[Check]:
    """Numbers with the limits beyond which a policy should not be used with the old calibration."""
    if old.camera != new.camera:
        raise UserError(f"these are of two cameras, '{old.camera}' and '{new.camera}'; compare calibrations of one")
    checks = lens_changes(old.intrinsics, new.intrinsics)
    if old.pose is None or new.pose is None:
        return checks
    if (old.setup, old.parent_frame) != (new.setup, new.parent_frame):
        raise UserError(
            f"one was {old.setup} in {old.parent_frame}, the other {new.setup} in {new.parent_frame}; compare "
            "calibrations of one setup"
        )
    before, after = old.pose.matrix, new.pose.matrix
    metres, degrees = apart(before, after)
    point = np.array([0.0, 0.0, AHEAD, 1.0])
    shift = float(np.linalg.norm((before - after) @ point))
    return [
        *checks,
        Check(name="camera moved", value=1000 * metres, unit="mm", required=3, good=1),
        Check(name="camera turned", value=degrees, unit="deg", required=0.3, good=0.1),
        Check(name=f"point {AHEAD:g} m ahead", value=1000 * shift, unit="mm", required=5, good=2),
    ]


def lens_changes(old: Intrinsics, new: Intrinsics) -> list[Check]:
    """How far points appear from where they did, over the whole picture."""
    if old.size != new.size:
        raise UserError(
            f"one was calibrated at {old.width} x {old.height}, the other at {new.width} x {new.height}; calibrate "
            "at one size"
        )
    across, up = np.tan(np.radians(old.field_of_view) / 2) * np.array([old.width / old.height, 1.0])
    grid = np.stack(np.meshgrid(np.linspace(-across, across, 13), np.linspace(-up, up, 9)), -1).reshape(-1, 2)
    points = np.column_stack([grid, np.ones(len(grid))])  # (117, 3) m, on a plane 1 m away
    here = project(old, np.eye(4), points)
    inside = ((here >= 0) & (here < old.size)).all(1)
    away = np.linalg.norm(here - project(new, np.eye(4), points), axis=1)[inside]
    focal = 100 * abs(new.matrix[4] / old.matrix[4] - 1)
    return [
        Check(name="focal length", value=focal, unit="%", required=1, good=0.3),
        Check(name="points in the picture, mean", value=float(away.mean()), unit="px", required=1.5, good=0.5),
        Check(name="points in the picture, most", value=float(away.max()), unit="px", required=3, good=1),
    ]
