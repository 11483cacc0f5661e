"""AprilTags of the family 36h11 in one image, and the pose of each in the camera's frame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from .edges import refined
from .poses import Pose
from .scene import Intrinsics, Tag

SHARPEST = 0.1  # pixels: no corner is known better, however well a pose fits


@dataclass(frozen=True)
class Candidate:
    """One of the two poses that a square seen from afar can have."""

    pose: Pose  # of the tag in the camera's frame
    error: float  # pixels, root mean square over the corners


@dataclass(frozen=True)
class Sighting:
    """One tag in one image."""

    tag: int
    camera: str
    candidates: tuple[Candidate, ...]  # one or two, the better fit first
    sigma: float  # m, what a corner that is off by the better candidate's error shifts the tag along the view


class TagDetector:
    """Finds tags; holds OpenCV's detector."""

    def __init__(self) -> None:
        parameters = cv2.aruco.DetectorParameters()
        parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_NONE
        dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
        self._detector = cv2.aruco.ArucoDetector(dictionary, parameters)

    def corners(self, image: np.ndarray) -> dict[int, np.ndarray]:
        """Of each tag in a uint8 image (H, W) or (H, W, 3): (4, 2) pixels, from its upper left one clockwise.

        RGB or BGR is all the same: tags are black and white. An id that is seen
        twice is left out: one of both is wrong, and nobody knows which.
        """
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
        corners, ids, _ = self._detector.detectMarkers(grey)
        found = [] if ids is None else [int(i) for i in ids.ravel()]
        return {
            i: refined(grey, np.asarray(c, dtype=np.float64).reshape(4, 2))
            for i, c in zip(found, corners, strict=True)
            if found.count(i) == 1
        }

    def sightings(
        self, image: np.ndarray, camera: str, intrinsics: Intrinsics, tags: Iterable[Tag], worst: float
    ) -> list[Sighting]:
        """Of those `tags` that the image shows and that fit within `worst` pixels."""
        known, found = {tag.id: tag for tag in tags}, []
        for number, corners in self.corners(image).items():
            if number not in known:
                continue
            candidates = tag_poses(corners, known[number].size, intrinsics)
            if candidates and candidates[0].error <= worst:
                sigma = depth_sigma(candidates[0], known[number].size, intrinsics.focal)
                found.append(Sighting(number, camera, candidates, sigma))
        return found


def tag_corners(size: float) -> np.ndarray:
    """(4, 3) m: a tag's corners in its frame, in the order of the detector."""
    return size / 2 * np.array([[-1, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]], dtype=np.float64)


def tag_poses(corners: np.ndarray, size: float, intrinsics: Intrinsics) -> tuple[Candidate, ...]:
    """Both solutions of the planar pose problem for corners (4, 2) in pixels, the better fit first.

    Those behind the camera, or that show it the tag's back, are left out.
    """
    points = tag_corners(size)
    _, turns, shifts, _ = cv2.solvePnPGeneric(
        points, corners.reshape(4, 1, 2), intrinsics.k, intrinsics.d, flags=cv2.SOLVEPNP_IPPE_SQUARE
    )
    candidates = []
    for turn, shift in zip(turns, shifts, strict=True):
        pose = Pose(shift.ravel(), Rotation.from_rotvec(turn.ravel()))
        facing = float(pose.rotation.apply([0.0, 0.0, 1.0]) @ pose.position)  # < 0: its front is what the camera sees
        if not np.isfinite(pose.position).all() or pose.position[2] <= 0 or facing >= 0:
            continue
        seen, _ = cv2.projectPoints(points, turn, shift, intrinsics.k, intrinsics.d)  # (4, 1, 2)
        error = float(np.sqrt(np.mean(np.sum((seen.reshape(4, 2) - corners) ** 2, axis=1))))
        candidates.append(Candidate(pose, error))
    return tuple(sorted(candidates, key=lambda candidate: candidate.error))


def depth_sigma(candidate: Candidate, size: float, focal: float) -> float:
    """m: distance^2 / (focal * size) per pixel, the depth error of a square whose edge is mis-measured by that much."""
    distance = float(np.linalg.norm(candidate.pose.position))
    return max(candidate.error, SHARPEST) * distance**2 / (focal * size)
