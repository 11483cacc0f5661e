"""Finding the board in pictures, and its pose where the camera is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from d2ppo_core.errors import UserError

from .board import BoardSpec
from .camera import Intrinsics, project
from .poses import pose

CORNERS = 10  # of a view, at least; small boards: all they have
GRID = (4, 3)  # cells of a picture, across and down, for its coverage


@dataclass(frozen=True)
class Seen:
    """The board's corners in one picture."""

    name: str
    ids: np.ndarray  # (n,) of corners
    points: np.ndarray  # (n, 3) m, in the board's frame
    pixels: np.ndarray  # (n, 2)
    size: tuple[int, int]  # of the picture: width, height
    blur: float  # pixels: width of edges as a Gaussian's standard deviation


class Detector:
    """Finds one kind of board."""

    def __init__(self, board: BoardSpec) -> None:
        self.corners = board.corners
        self._detector = cv2.aruco.CharucoDetector(board.charuco())
        self.least = min(CORNERS, len(self.corners))

    def find(self, picture: np.ndarray, name: str = "") -> Seen | None:
        """The board in (h, w, 3) BGR or (h, w) uint8; None where fewer than four corners are seen."""
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) if picture.ndim == 3 else picture
        pixels, ids, _, _ = self._detector.detectBoard(grey)
        if ids is None or len(ids) < 4:
            return None
        ids, pixels = ids.ravel(), pixels.reshape(-1, 2).astype(np.float64)
        return Seen(name, ids, self.corners[ids], pixels, (grey.shape[1], grey.shape[0]), blur_of(grey, pixels))


def find_all(board: BoardSpec, pictures: Sequence[np.ndarray], names: Sequence[str]) -> list[Seen | None]:
    """The board in each picture; None where too few corners are seen to use it."""
    detector = Detector(board)
    found = [detector.find(picture, name) for picture, name in zip(pictures, names, strict=True)]
    usable = [seen if seen is not None and len(seen.ids) >= detector.least else None for seen in found]
    if not any(usable):
        raise UserError(
            f"the board ({board.columns} x {board.rows}, {board.dictionary}) is in none of the {len(found)} pictures; "
            "compare its numbers with the print, and try legacy=true for a board made by an old OpenCV"
        )
    return usable


def blur_of(grey: np.ndarray, pixels: np.ndarray, reach: int = 12) -> float:
    """How wide the edges around the corners are, as a Gaussian's standard deviation in pixels (0.5: sharp).

    An edge between levels a and b blurred by s has its steepest slope |b - a| / (s sqrt(2 pi)).
    """
    widths = []
    for u, v in np.round(pixels).astype(int):
        patch = grey[max(v - reach, 0) : v + reach + 1, max(u - reach, 0) : u + reach + 1].astype(np.float64)
        if min(patch.shape) < reach:
            continue
        step = np.hypot(np.diff(patch, axis=1)[:-1], np.diff(patch, axis=0)[:, :-1])
        low, high = np.percentile(patch, (5, 95))
        if high - low > 20:  # else no contrast to judge by
            widths.append((high - low) / (np.percentile(step, 99) * np.sqrt(2 * np.pi)))
    return float(np.median(widths)) if widths else float("inf")


def board_pose(sees: Intrinsics, seen: Seen) -> np.ndarray:
    """(4, 4): the board in the camera's frame, from one picture."""
    points, pixels = seen.points[:, None], seen.pixels[:, None]  # (n, 1, 3), (n, 1, 2)
    _, rotations, positions, _ = cv2.solvePnPGeneric(points, pixels, sees.k, sees.d, flags=cv2.SOLVEPNP_IPPE)
    candidates = []
    for rotation, position in zip(rotations, positions, strict=True):  # the two that a plane seen from afar may have
        turned, moved = cv2.solvePnPRefineLM(points, pixels, sees.k, sees.d, rotation, position)
        candidates.append(pose(moved, turned))
    return min(candidates, key=lambda camera_board: error_of(sees, camera_board, seen))


def error_of(sees: Intrinsics, camera_board: np.ndarray, seen: Seen) -> float:
    """Root mean square distance of the corners from where this pose puts them, pixels."""
    away = project(sees, camera_board, seen.points) - seen.pixels
    return float(np.sqrt((away**2).sum(1).mean()))


def coverage(seen: Sequence[Seen]) -> np.ndarray:
    """(down, across) counts of corners in each cell of the picture."""
    across, down = GRID
    counts = np.zeros((down, across), dtype=int)
    for one in seen:
        cells = (one.pixels / one.size * (across, down)).astype(int).clip(0, (across - 1, down - 1))
        np.add.at(counts, (cells[:, 1], cells[:, 0]), 1)
    return counts
