"""A calibration against views that it was not computed from, and against points touched by the robot's finger tip."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from d2ppo_core.errors import UserError
from d2ppo_core.frozen import Frozen
from d2ppo_core.placed import Vector

from .calibration import Calibration, look, problem_of, require_size
from .camera import project
from .checks import Check
from .dataset import Dataset
from .detect import Seen, board_pose, error_of
from .files import read, read_picture, write_picture
from .handeye import Problem, Solution
from .poses import inverse, mean, spread


class Touch(Frozen):
    """Where the finger tip was when it touched a corner of the board that a view shows."""

    image: str  # the view, a file of the dataset
    corner: int  # the board's corner, by id
    point: Vector  # m, in the robot's base


class Touches(Frozen):
    """A file of them."""

    touches: tuple[Touch, ...]


def validate(
    calibration: Calibration, folder: str | Path, touches: str | Path = "", out: str | Path = ""
) -> list[Check]:
    """How well a calibration explains another recording; pictures of it into the folder `out`.

    The board may lie elsewhere than it did, or be held otherwise: only the camera's place is judged.
    """
    dataset, seen, rows = look(folder)
    sees = calibration.intrinsics
    require_size(sees, seen)
    if dataset.board != calibration.board:
        raise UserError(f"{folder} was recorded with another board than this calibration; give both the same numbers")
    alone = [error_of(sees, board_pose(sees, one), one) for one in seen]
    checks = [Check(name="lens: corners", value=float(np.sqrt(np.mean(np.square(alone)))), unit="px", required=0.75,
                    good=0.4)]  # fmt: skip
    expected = [board_pose(sees, one) for one in seen]
    if calibration.pose is not None and dataset.setup != "camera_only" and len(seen) > 1:
        if dataset.setup != calibration.setup:
            raise UserError(
                f"{folder} was recorded {dataset.setup}, the calibration is {calibration.setup}; use one of them"
            )
        found, expected = place_checks(problem_of(dataset, seen, rows, sees), calibration)
        checks += found
    if touches:
        checks.append(touch_check(calibration, dataset, seen, rows, read(Touches, touches)))
    for one, camera_board in zip(seen, expected, strict=True) if out else ():
        write_picture(Path(out) / f"{Path(one.name).stem}_overlay.png", overlay(folder, calibration, one, camera_board))
    return checks


def place_checks(problem: Problem, calibration: Calibration) -> tuple[list[Check], list[np.ndarray]]:
    """Whether all views agree where the board at rest is; and where each view should see it, (4, 4) each."""
    camera = calibration.pose.matrix
    places = problem.arm @ camera @ problem.camera_board
    solution = Solution(camera, mean(places))
    metres, degrees = spread(places)
    expected = inverse(camera) @ inverse(problem.arm) @ solution.board
    errors = [error_of(problem.sees, one, seen) for one, seen in zip(expected, problem.seen, strict=True)]
    checks = [
        Check(name="board at rest, spread", value=1000 * metres, unit="mm", required=5, good=2),
        Check(name="board at rest, turned", value=degrees, unit="deg", required=0.6, good=0.3),
        Check(name="corners", value=float(np.sqrt(np.mean(np.square(errors)))), unit="px", required=4, good=2),
    ]
    return checks, list(expected)


def touch_check(
    calibration: Calibration, dataset: Dataset, seen: list[Seen], rows: np.ndarray, touches: Touches
) -> Check:
    """How far touched corners are from where the camera sees them: the one check that no error of ours can flatter."""
    if calibration.pose is None or not touches.touches:
        raise UserError(
            "touched points need the camera's place and at least one touch; run `d2ppo calibrate solve` first"
        )
    by_name, away = {one.name: (one, row) for one, row in zip(seen, rows, strict=True)}, []
    for touch in touches.touches:
        if touch.image not in by_name or not 0 <= touch.corner < len(dataset.board.corners):
            raise UserError(
                f"there is no corner {touch.corner} in a view '{touch.image}' that shows the board; name a view's "
                f"picture and a corner from 0 to {len(dataset.board.corners) - 1}"
            )
        one, row = by_name[touch.image]
        base_camera = calibration.pose.matrix
        if calibration.setup == "eye_in_hand" and dataset.views[row].base_effector is None:
            raise UserError(f"{touch.image} has no base_effector; a camera in the hand is where the robot says it is")
        if calibration.setup == "eye_in_hand":
            base_camera = dataset.base_flange(dataset.views[row]) @ base_camera
        point = base_camera @ board_pose(calibration.intrinsics, one) @ [*dataset.board.corners[touch.corner], 1.0]
        away.append(np.linalg.norm(point[:3] - touch.point))
    return Check(name="touched corners, most", value=1000 * float(max(away)), unit="mm", required=5, good=2)


def overlay(folder: str | Path, calibration: Calibration, seen: Seen, camera_board: np.ndarray) -> np.ndarray:
    """(h, w, 3) BGR: corners as seen (green circles) and as expected (red crosses), and the board's axes."""
    picture, sees = read_picture(Path(folder) / seen.name), calibration.intrinsics
    for u, v in seen.pixels:
        cv2.circle(picture, (round(u * 16), round(v * 16)), 5 * 16, (0, 200, 0), 1, cv2.LINE_AA, 4)
    for u, v in project(sees, camera_board, seen.points):
        cv2.drawMarker(picture, (round(u), round(v)), (0, 0, 255), cv2.MARKER_CROSS, 7, 1)
    turn, _ = cv2.Rodrigues(camera_board[:3, :3])
    cv2.drawFrameAxes(picture, sees.k, sees.d, turn, camera_board[:3, 3], 2 * calibration.board.square, 2)
    return picture
