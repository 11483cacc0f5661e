"""Rendered recordings with known truth: to try every command without hardware, and to test against.

Each pixel is the mean of several rays through the distorting lens onto a finely printed board.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from .board import BoardSpec, black_cells
from .camera import Intrinsics, intrinsics
from .dataset import Dataset, Recording, Setup
from .poses import Placed, inverse, placed, pose

PER_MM = 10  # texels of the printed board
MARGIN = 10  # mm of white paper around it
SAMPLES = 3  # rays of a pixel in each direction
BASE_CAMERA = pose((1.1, 0.05, 0.6), Rotation.from_euler("xyz", [-118.0, 3.0, 88.0], degrees=True))
FLANGE_CAMERA = pose((0.065, -0.012, 0.048), Rotation.from_euler("xyz", [2.0, -4.0, 44.0], degrees=True))
BASE_BOARD = pose((0.5, 0.1, 0.02), Rotation.from_euler("xyz", [181.0, 1.5, 25.0], degrees=True))
FLANGE_BOARD = pose((0.03, 0.02, 0.09), Rotation.from_euler("xyz", [3.0, -2.0, 10.0], degrees=True))


@dataclass(frozen=True)
class Truth:
    """What the pictures are made from."""

    sees: Intrinsics
    camera: np.ndarray  # (4, 4): the camera in the flange (in hand) or in the base (to hand)
    board: np.ndarray  # (4, 4): the board in the base (in hand) or in the flange (to hand)


def webcam(focal: float = 610.0, size: tuple[int, int] = (640, 480), bent: bool = True) -> Intrinsics:
    """A camera with an off-centre axis and a lens that bends."""
    matrix = [[focal, 0, size[0] / 2 + 2.3], [0, focal + 1.7, size[1] / 2 - 3.2], [0, 0, 1]]
    return intrinsics(size, np.array(matrix), np.array([-0.11, 0.07, 0.0008, -0.0006, 0.0] if bent else [0.0] * 5))


class Renderer:
    """Paints the board as one camera sees it."""

    def __init__(self, board: BoardSpec, sees: Intrinsics) -> None:
        self.sees, self._texture = sees, texture(board)
        inside = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5  # a pixel's middle has whole coordinates
        u, v = ((np.arange(n)[:, None] + inside).ravel() for n in sees.size)
        points = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 1, 2)  # (rows * columns, 1, 2)
        self._rays = cv2.undistortPoints(points, sees.k, sees.d).reshape(len(v), len(u), 2)

    def picture(self, camera_board: np.ndarray, rng: np.random.Generator | None = None, noise: float = 0.0,
                blur: float = 0.0) -> np.ndarray:  # fmt: skip
        """(h, w) uint8: the board at a pose in the camera's frame; `noise` in grey values, `blur` in pixels."""
        x, y = self._rays[..., 0], self._rays[..., 1]
        axes, place = camera_board[:3, :3], camera_board[:3, 3]
        depth = (axes[:, 2] @ place) / (x * axes[0, 2] + y * axes[1, 2] + axes[2, 2])
        across, down = (
            1000 * PER_MM * (depth * (x * a[0] + y * a[1] + a[2]) - a @ place) + MARGIN * PER_MM - 0.5
            for a in axes.T[:2]
        )  # fmt: skip
        across = np.where(depth > 0, across, -1e6).astype(np.float32)
        fine = cv2.remap(self._texture, across, down.astype(np.float32), cv2.INTER_LINEAR, borderValue=110.0)
        width, height = self.sees.size
        picture = fine.reshape(height, SAMPLES, width, SAMPLES).mean((1, 3))
        picture = cv2.GaussianBlur(picture, (0, 0), blur) if blur else picture
        picture = picture + rng.normal(0, noise, picture.shape) if rng is not None else picture
        return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def texture(board: BoardSpec) -> np.ndarray:
    """(h, w) float32 grey values: the printed board with its margin."""
    width, height = (round((1000 * v + 2 * MARGIN) * PER_MM) for v in board.size)
    paper = np.full((height, width), 225.0, dtype=np.float32)
    for x, y, w, h in PER_MM * (black_cells(board) + np.array([MARGIN, MARGIN, 0, 0])):
        paper[round(y) : round(y + h), round(x) : round(x + w)] = 25.0
    return paper


def camera_boards(board: BoardSpec, count: int, rng: np.random.Generator, tilt: float = 40.0) -> list[np.ndarray]:
    """(4, 4) poses of the board before a camera: near and far, all over the picture, tilted to all sides."""
    middle = np.array([*board.size, 0.0]) / 2
    poses = []
    for number in range(count):
        around = 2 * np.pi * (number + rng.uniform()) / count
        lean = np.radians(tilt) * np.sqrt(rng.uniform(0.15, 1.0))
        turn = Rotation.from_rotvec(lean * np.array([np.cos(around), np.sin(around), 0.0]))
        turn = turn * Rotation.from_euler("z", rng.uniform(-min(tilt, 35), min(tilt, 35)), degrees=True)
        distance = rng.uniform(1.5, 2.4) * board.size[0]
        centre = np.array([rng.uniform(-0.22, 0.22), rng.uniform(-0.16, 0.16), 1.0]) * distance
        poses.append(pose(centre - turn.apply(middle), turn))
    return poses


def disturbed(matrix: np.ndarray, rng: np.random.Generator, metres: float, degrees: float) -> np.ndarray:
    """A pose as a robot reports it: off by normal noise along and about each axis."""
    return matrix @ pose(rng.normal(0, metres, 3), np.radians(rng.normal(0, degrees, 3)))


def truth_of(setup: Setup, sees: Intrinsics) -> Truth:
    """The scene that is rendered for a setup."""
    return Truth(sees, FLANGE_CAMERA, BASE_BOARD) if setup == "eye_in_hand" else Truth(sees, BASE_CAMERA, FLANGE_BOARD)


def base_flange(setup: Setup, truth: Truth, camera_board: np.ndarray) -> np.ndarray:
    """(4, 4): where the flange must be so that the camera sees the board there."""
    if setup == "eye_in_hand":
        return truth.board @ inverse(camera_board) @ inverse(truth.camera)
    return truth.camera @ camera_board @ inverse(truth.board)


def record(
    folder: str | Path, setup: Setup, views: int = 20, board: BoardSpec | None = None, seed: int = 0,
    noise: float = 3.0, robot_noise: tuple[float, float] = (0.0001, 0.02), flange_effector: Placed | None = None,
) -> Truth:  # fmt: skip
    """Render a recording; `robot_noise` is that of the robot's poses, m and degrees."""
    rng, board, sees = np.random.default_rng(seed), board or BoardSpec(), webcam()
    truth, renderer = truth_of(setup, sees), Renderer(board, sees)
    tool = {"flange_effector": flange_effector} if flange_effector else {}
    recording = Recording(folder, Dataset(camera="rendered", setup=setup, board=board, **tool))
    for camera_board in camera_boards(board, views, rng):
        picture = renderer.picture(camera_board, rng, noise, blur=0.6)
        effector = base_flange(setup, truth, camera_board) @ recording.dataset.flange_effector.matrix
        said = None if setup == "camera_only" else placed(disturbed(effector, rng, *robot_noise))
        recording.add(picture, said)
    return truth
