"""Taking views: which pictures are worth keeping, what is still missing, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from d2ppo_core.errors import UserError
from d2ppo_core.tasks import validated

from .dataset import Recording
from .detect import GRID, Detector, Seen, coverage
from .files import read_picture, read_values
from .handeye import diversity
from .poses import IDENTITY, Placed, apart

BLUR = 1.3  # pixels: wider edges mean that something moved, or the lens is out of focus
SPEED = 0.01  # rad/s: a joint faster than this moves
REST = 0.5  # s that the robot must have been at rest
MOVED = 0.05  # of the picture's width: a view in which no corner is farther from where it was says nothing new
TURNED = 4.0  # degrees: the same of the hand
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")


class RobotPose(Placed):
    """The end effector in the robot's base, and whether it moved."""

    joints: tuple[float, ...] = ()  # rad
    speed: float = 0.0  # rad/s, of the fastest joint


@dataclass
class Capture:
    """Decides on each picture; keeps the good ones in a recording."""

    recording: Recording
    views: list[Seen] = field(default_factory=list)
    poses: list[np.ndarray] = field(default_factory=list)
    _moved: float = float("-inf")  # s: when the robot last moved

    def __post_init__(self) -> None:
        dataset = self.recording.dataset
        self._detector = Detector(dataset.board)
        for view in dataset.views:  # a recording that goes on
            seen = self._detector.find(read_picture(self.recording.folder / view.image), view.image)
            if seen is not None:
                self._remember(seen, view.base_effector)

    def offer(self, picture: np.ndarray, robot: RobotPose | None = None, now: float | None = None) -> str:
        """Keep (h, w, 3) BGR if it is a good view; why not, else "".

        Args:
            now: s, on any steady clock, of a live stream: the robot must then have been at rest for a while.
        """
        if why := self._unsteady(robot, now):
            return why
        seen = self._detector.find(picture)
        if seen is None or len(seen.ids) < self._detector.least:
            return f"only {0 if seen is None else len(seen.ids)} corners are seen, {self._detector.least} are needed"
        if seen.blur > BLUR:
            return f"the picture is blurred (edges {seen.blur:.1f} px wide)"
        if self._known(seen, robot):
            return "much like a view that there is"
        at = None if robot is None else Placed(position=robot.position, quaternion=robot.quaternion)
        time = None if now is None else round(1e9 * now)
        path = self.recording.add(picture, at, robot.joints if robot else (), time)
        self._remember(replace(seen, name=path.name), at)
        return ""

    def _unsteady(self, robot: RobotPose | None, now: float | None) -> str:
        """Why the robot's pose is not to be trusted; empty: it is."""
        if robot is None and self.recording.dataset.setup != "camera_only":
            return "the robot's pose is not known"
        if robot is not None and robot.speed >= SPEED:
            self._moved = self._moved if now is None else now
            return f"the robot moves ({robot.speed:.3f} rad/s)"
        return "the robot has just moved" if now is not None and now - self._moved < REST else ""

    def _remember(self, seen: Seen, at: Placed | None) -> None:
        self.views.append(seen)
        self.poses.append((at or IDENTITY).matrix)

    def _known(self, seen: Seen, robot: RobotPose | None) -> bool:
        """Whether a kept view shows the board at the same place and, with a robot, at the same angle."""
        for view, matrix in zip(self.views, self.poses, strict=True):
            common, here, there = np.intersect1d(seen.ids, view.ids, return_indices=True)
            moved = np.linalg.norm(seen.pixels[here] - view.pixels[there], axis=1).max() if len(common) else np.inf
            turned = 0.0 if robot is None else apart(robot.matrix, matrix)[1]
            if moved < MOVED * seen.size[0] and turned < TURNED:
                return True
        return False

    def advice(self) -> str:
        """What there is, and what to show next."""
        counts = coverage(self.views)
        rows, columns = ("upper", "middle", "lower"), ("left", "left of middle", "right of middle", "right")
        empty = [f"{rows[r]} {columns[c]}" for r, c in np.argwhere(counts == 0)]
        said = [f"{len(self.views)} views", f"{100 * float((counts > 0).mean()):.0f} % of the picture"]
        if empty:
            said.append(f"nothing yet {empty[0]}" + (f" and in {len(empty) - 1} more places" if len(empty) > 1 else ""))
        if len(self.poses) > 1 and self.recording.dataset.setup != "camera_only":
            first, second = diversity(np.array(self.poses))
            said.append(f"hand turned by {first:.0f} degrees, by {second:.0f} about a second axis")
            if second < 30:
                said.append("tilt it more")
        return "; ".join(said)

    def picture(self) -> np.ndarray:
        """(h, w, 3) BGR: the newest view, all corners so far, and the cells that still lack any in red."""
        last, (across, down) = self.views[-1], GRID
        shown = read_picture(self.recording.folder / last.name)
        width, height = last.size
        for row, column in np.argwhere(coverage(self.views) == 0):
            low = (column * width // across, row * height // down)
            high = ((column + 1) * width // across - 1, (row + 1) * height // down - 1)
            cv2.rectangle(shown, low, high, (0, 0, 255), 2)
        for view in self.views:
            for u, v in view.pixels:
                cv2.circle(
                    shown, (round(u), round(v)), 2, (0, 200, 0) if view is last else (200, 160, 0), -1, cv2.LINE_AA
                )
        return shown


def pictures_of(source: str) -> Iterator[tuple[str, np.ndarray, float | None]]:
    """Name, (h, w, 3) BGR and time (s; None: not live) of each picture of a folder, a video file or a video device."""
    if Path(source).is_dir():
        files = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in ENDINGS)
        if not files:
            raise UserError(
                f"{source} holds no pictures ({', '.join(ENDINGS)}); give a folder of pictures, a video or a device"
            )
        yield from ((path.name, read_picture(path), None) for path in files)
        return
    if not source.isdigit() and not Path(source).exists():
        raise UserError(f"there is no {source}; give a folder of pictures, a video file, or a video device's number")
    video = cv2.VideoCapture(int(source) if source.isdigit() else source)
    try:
        if not video.isOpened():
            raise UserError(
                f"video {source} cannot be opened; check that it is plugged in and used by nobody else, or a video"
            )
        number = 0
        while True:
            there, picture = video.read()
            if not there:
                return
            yield f"frame {number}", picture, video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            number += 1
    finally:
        video.release()


def read_poses(path: str | Path) -> dict[str, RobotPose]:
    """{picture's name: pose} from JSON or YAML."""
    values = read_values(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold {{picture's file name: {{position, quaternion}}}}; write it so")
    return {
        str(name): validated(RobotPose, json.loads(json.dumps(pose)), f"{path}: {name}")
        for name, pose in values.items()
    }
