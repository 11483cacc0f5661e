"""Camera matrix and lens from views of the board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from d2ppo_core.errors import UserError

from .camera import Intrinsics, intrinsics
from .checks import Check
from .detect import Seen, board_pose, coverage, error_of
from .poses import pose

VIEWS = 6  # fewest that a camera is computed from
TILT = 10.0  # degrees: least angle between two views of the board, else focal length and distance are one
HELD_OUT = 0.3  # share of the views kept aside to judge by


@dataclass(frozen=True)
class CameraResult:
    """A camera with what speaks for it."""

    sees: Intrinsics
    names: list[str]  # of the views used
    rejected: list[str]
    errors: list[float]  # pixels, root mean square of each view used
    checks: list[Check]


def calibrate_camera(views: Sequence[Seen], rational: bool = False, seed: int = 0) -> CameraResult:
    """Camera matrix and distortion; views that do not fit are left out, 30 % are first kept aside to judge by.

    Args:
        rational: three more coefficients (k4 k5 k6), for wide-angle lenses.
    """
    _require(views)
    sees, errors, deviations, angle = _fit(views, rational)
    keep = good_views(errors, least=VIEWS, floor=0.3)
    kept = [view for view, good in zip(views, keep, strict=True) if good]
    if not keep.all():
        sees, errors, deviations, angle = _fit(kept, rational)
    overall = float(np.sqrt(np.average(np.square(errors), weights=[len(view.ids) for view in kept])))
    checks = [
        Check(name="reprojection", value=overall, unit="px", required=0.5, good=0.3),
        Check(name="reprojection of held-out views", value=held_out(kept, rational, seed), unit="px", required=0.75,
              good=0.4),
        Check(name="views", value=len(kept), unit="", required=10, good=15, better="more"),
        Check(name="angle between views", value=angle, unit="deg", required=20, good=30, better="more"),
        Check(name="picture covered", value=100 * float((coverage(kept) > 0).mean()), unit="%", required=60, good=80,
              better="more"),
        Check(name="focal length, std", value=100 * deviations / sees.matrix[0], unit="%", required=0.5, good=0.1),
    ]  # fmt: skip
    rejected = [view.name for view, good in zip(views, keep, strict=True) if not good]
    return CameraResult(sees, [view.name for view in kept], rejected, np.round(errors, 4).tolist(), checks)


def good_views(errors: np.ndarray, least: int, floor: float) -> np.ndarray:
    """(n,) bool: which views fit as the others do, by median and median deviation; at most a quarter is left out.

    `floor`: an error below it is never a reason, however well the others fit.
    """
    errors = np.asarray(errors)
    middle = np.median(errors)
    limit = max(floor, middle + 4 * 1.4826 * np.median(np.abs(errors - middle)))
    allowed = min(len(errors) // 4, len(errors) - least)
    worst = np.argsort(-errors, kind="stable")[: max(allowed, 0)]
    good = np.ones(len(errors), dtype=bool)
    good[worst[errors[worst] > limit]] = False
    return good


def held_out(views: Sequence[Seen], rational: bool, seed: int) -> float:
    """Reprojection error, pixels, of views that the camera was not computed from; NaN where there are too few."""
    order = np.random.default_rng(seed).permutation(len(views))
    aside = round(HELD_OUT * len(views))
    if len(views) - aside < VIEWS or not aside:
        return float("nan")
    sees, *_ = _fit([views[i] for i in order[aside:]], rational)
    return float(np.sqrt(np.mean([error_of(sees, board_pose(sees, views[i]), views[i]) ** 2 for i in order[:aside]])))


def _require(views: Sequence[Seen]) -> None:
    if len(views) < VIEWS:
        raise UserError(
            f"the board is seen well in only {len(views)} views; record at least {VIEWS}, better 15 to 20, with "
            "10 or more corners each"
        )


def _fit(views: Sequence[Seen], rational: bool) -> tuple[Intrinsics, np.ndarray, float, float]:
    """Camera, each view's error, the focal length's standard deviation (pixels), the largest angle between views."""
    points = [view.points.astype(np.float32)[:, None] for view in views]
    pixels = [view.pixels.astype(np.float32)[:, None] for view in views]
    flags = cv2.CALIB_RATIONAL_MODEL if rational else 0
    try:
        _, matrix, lens, turns, places, deviations, _, errors = cv2.calibrateCameraExtended(
            points, pixels, views[0].size, None, None, flags=flags
        )
    except cv2.error as error:
        raise UserError(f"no camera explains these views ({error.err}); record new ones, tilted and near") from error
    normals = np.array([pose(place, turn)[:3, 2] for turn, place in zip(turns, places, strict=True)])
    angle = float(np.degrees(np.arccos(np.clip(normals @ normals.T, -1, 1))).max())
    if not np.isfinite(matrix).all() or angle < TILT:
        raise UserError(
            f"the board is turned by only {angle:.0f} degrees between these views, so that focal length and distance "
            "cannot be told apart; tilt it by 30 degrees or more to all sides"
        )
    lens = lens.ravel()[: 8 if rational else 5]
    return intrinsics(views[0].size, matrix, lens), errors.ravel(), float(deviations.ravel()[0]), angle
