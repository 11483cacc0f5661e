"""The result of a calibration: one JSON file with a digest that trials record.

The camera's pose is that of its optical frame in `parent_frame`: the flange (eye in hand) or the robot's base (eye to
hand). It is absent where only the camera itself was calibrated.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json
from d2ppo_core.frozen import Frozen
from d2ppo_core.lens import content_digest

from . import dataset as recorded
from .board import BoardSpec
from .camera import Intrinsics
from .checks import Check
from .dataset import Dataset, Setup, read_dataset, read_pictures
from .detect import Seen, find_all
from .files import read
from .handeye import (
    Problem,
    Solution,
    board_spread,
    disagreement,
    diversity,
    hold_out,
    require_motion,
    solve,
    view_errors,
)
from .intrinsics import calibrate_camera
from .poses import Placed, placed


class Calibration(Frozen):
    """Everything that a calibration found, and what speaks for it."""

    format: Literal[1] = 1
    camera: str
    setup: Setup
    made: str  # UTC, ISO 8601
    parent_frame: str = ""
    base_frame: str = ""
    flange_frame: str = ""
    camera_frame: str
    intrinsics: Intrinsics
    pose: Placed | None = None  # the camera in parent_frame
    board_pose: Placed | None = None  # the board in the base (in hand) or in the flange (to hand)
    board: BoardSpec
    dataset: str  # digest of the recording
    views: tuple[str, ...]  # that it rests on
    rejected: tuple[str, ...]
    errors: tuple[float, ...]  # pixels, of each view it rests on
    # How far each closed form is from `pose`: m, degrees.
    solvers: dict[str, tuple[float, float]] = Field(default_factory=dict)
    checks: tuple[Check, ...]
    digest: str = ""  # sha256 of all the rest

    @property
    def accepted(self) -> bool:
        """Whether every check keeps its limit."""
        return all(check.grade != "BAD" for check in self.checks)

    def content_digest(self) -> str:
        """Hex sha256 of everything but `digest`."""
        return content_digest(self.model_dump(mode="json"))


def write_calibration(path: str | Path, calibration: Calibration) -> Calibration:
    """Write it under its digest; what was written."""
    named = calibration.model_copy(update={"digest": calibration.content_digest()})
    write_json(path, named.model_dump(mode="json"))
    return named


def read_calibration(path: str | Path) -> Calibration:
    """A file that `write_calibration` wrote, unchanged since."""
    calibration = read(Calibration, path)
    if calibration.digest != calibration.content_digest():
        raise UserError(f"{path} was changed after it was written (its digest differs); calibrate again, or restore it")
    return calibration


def look(folder: str | Path) -> tuple[Dataset, list[Seen], np.ndarray]:
    """A recording, the board in those views that show enough of it, and their rows."""
    dataset = read_dataset(folder)
    if not dataset.views:
        raise UserError(f"{folder} holds no views yet; record some with `d2ppo calibrate capture`")
    names = [view.image for view in dataset.views]
    found = find_all(dataset.board, read_pictures(folder, dataset), names)
    rows = [row for row, seen in enumerate(found) if seen is not None]
    return dataset, [seen for seen in found if seen is not None], np.array(rows)


def problem_of(dataset: Dataset, seen: list[Seen], rows: np.ndarray, sees: Intrinsics) -> Problem:
    """Hand-eye calibration's input from a recording."""
    require_size(sees, seen)
    flange = np.array([dataset.base_flange(dataset.views[row]) for row in rows])
    return Problem(sees, seen, flange, dataset.setup == "eye_in_hand")


def require_size(sees: Intrinsics, seen: list[Seen]) -> None:
    """Refuse a camera that was calibrated at another resolution."""
    if seen[0].size != sees.size:
        raise UserError(
            f"the pictures are {seen[0].size[0]} x {seen[0].size[1]}, but the camera was calibrated at {sees.width} x "
            f"{sees.height}; record at that size, or calibrate the camera at this one"
        )


def calibrate(folder: str | Path, sees: Intrinsics | None = None, rational: bool = False, seed: int = 0,
              camera_only: bool = False) -> Calibration:  # fmt: skip
    """Camera matrix and lens (unless `sees` gives them), then the camera's place, from one recording."""
    dataset, seen, rows = look(folder)
    camera_only = camera_only or dataset.setup == "camera_only"
    if not camera_only:
        require_motion(np.array([dataset.base_flange(dataset.views[row]) for row in rows]))
    checks: list[Check] = []
    if sees is None:
        result = calibrate_camera(seen, rational, seed)
        sees, checks = result.sees, result.checks
        names, rejected, errors = result.names, result.rejected, result.errors
    elif camera_only:
        raise UserError(
            "a known camera leaves nothing to calibrate in pictures without robot poses; leave --intrinsics"
        )
    common = {
        "camera": dataset.camera, "made": datetime.now(timezone.utc).isoformat(timespec="seconds"), "intrinsics": sees,
        "camera_frame": f"{dataset.camera}_optical_frame", "board": dataset.board, "dataset": recorded.digest(folder),
    }  # fmt: skip
    if camera_only:
        return Calibration(
            **common, setup="camera_only", views=tuple(names), rejected=tuple(rejected), errors=tuple(errors),
            checks=tuple(checks),
        )  # fmt: skip
    problem = problem_of(dataset, seen, rows, sees)
    solution, kept, closed = solve(problem)
    part = problem.only(np.flatnonzero(kept))
    return Calibration(
        **common, setup=dataset.setup, base_frame=dataset.base_frame, flange_frame=dataset.flange_frame,
        parent_frame=dataset.flange_frame if problem.in_hand else dataset.base_frame,
        pose=placed(solution.camera), board_pose=placed(solution.board),
        views=tuple(one.name for one in part.seen),
        rejected=tuple(one.name for one, good in zip(seen, kept, strict=True) if not good),
        errors=tuple(view_errors(part, solution).round(4).tolist()),
        solvers=disagreement(closed, solution),
        checks=(*checks, *hand_eye_checks(part, solution, closed, seed)),
    )  # fmt: skip


def hand_eye_checks(part: Problem, solution: Solution, closed: dict[str, Solution], seed: int) -> list[Check]:
    """What to judge the camera's place by."""
    metres, degrees = board_spread(part, solution)
    aside = hold_out(part, seed)
    first, second = diversity(part.base_flange)
    apart = sorted(metres for metres, _ in disagreement(closed, solution).values())
    fewest = min(len(one.ids) for one in part.seen)
    return [
        Check(name="views of the hand", value=len(part.seen), unit="", required=10, good=15, better="more"),
        Check(name="corners, fewest in a view", value=fewest, unit="", required=min(10, len(part.seen[0].ids)), good=12,
              better="more"),
        Check(name="largest turn of the hand", value=first, unit="deg", required=30, good=60, better="more"),
        Check(name="about a second axis", value=second, unit="deg", required=20, good=30, better="more"),
        Check(name="board at rest, spread", value=1000 * metres, unit="mm", required=5, good=2),
        Check(name="board at rest, turned", value=degrees, unit="deg", required=0.6, good=0.3),
        Check(name="held-out views: board", value=1000 * aside[0], unit="mm", required=5, good=2),
        Check(name="held-out views: turned", value=aside[1], unit="deg", required=0.6, good=0.3),
        Check(name="held-out views: corners", value=aside[2], unit="px", required=4, good=2),
        Check(name="solvers apart (median)", value=1000 * apart[len(apart) // 2], unit="mm", required=2, good=1),
    ]  # fmt: skip
