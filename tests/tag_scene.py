"""Painted pictures of tagged boxes: every pixel is the mean of several rays through the lens onto the tags' faces."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_ros.objects.poses import Pose
from d2ppo_ros.objects.scene import Intrinsics, Placed, PlacedCamera, Tag, TaggedObject

SAMPLES = 4  # rays of a pixel in each direction
MARGIN = 1 / 8  # of the tag's edge: white around it, one of its cells
QUATERNIONS = {  # of a face's frame (z outwards) in the cube's
    "top": (0.0, 0.0, 0.0, 1.0),
    "front": (0.5, 0.5, 0.5, 0.5),  # +x
    "back": (0.5, -0.5, -0.5, 0.5),  # -x
    "left": (0.0, 0.70710678118, 0.70710678118, 0.0),  # +y
    "right": (0.70710678118, 0.0, 0.0, 0.70710678118),  # -y
}
OUTWARDS = {"top": (0, 0, 1), "front": (1, 0, 0), "back": (-1, 0, 0), "left": (0, 1, 0), "right": (0, -1, 0)}
LENS = (-0.25, 0.08, 0.001, -0.0015, 0.0)  # a webcam's


def tagged_cube(edge: float = 0.05, faces: Sequence[str] = tuple(QUATERNIONS)) -> TaggedObject:
    """A cube with tags 0, 1, ... on its faces, each as big as fits with its margin."""
    tags = [
        Tag(
            id=list(QUATERNIONS).index(face), size=edge / (1 + 2 * MARGIN),
            position=tuple(edge / 2 * float(v) for v in OUTWARDS[face]), quaternion=QUATERNIONS[face],
        )
        for face in faces
    ]
    return TaggedObject(name="cube", tags=tuple(tags))


def intrinsics(focal: float = 600.0, distortion: Sequence[float] = ()) -> Intrinsics:
    """Of a camera of 640 x 480."""
    return Intrinsics(
        width=640, height=480, matrix=(focal, 0.0, 322.3, 0.0, focal, 236.8, 0.0, 0.0, 1.0),
        distortion=tuple(float(v) for v in distortion),
    )


def looking_at(name: str, eye: Sequence[float], target: Sequence[float], sees: Intrinsics) -> PlacedCamera:
    """A camera at `eye` whose middle is near `target`; its picture's top is up in the world."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)  # (3, 3): x right, y down, z forward
    quaternion = tuple(float(v) for v in Rotation.from_matrix(axes).as_quat())
    return PlacedCamera(name=name, position=tuple(map(float, eye)), quaternion=quaternion, intrinsics=sees)


def paint(
    camera: PlacedCamera, things: Sequence[tuple[TaggedObject, Pose]], rng: np.random.Generator | None = None,
    noise: float = 0.0, blur: float = 0.0, hidden: Sequence[int] = (), swapped: dict[int, int] | None = None,
) -> np.ndarray:
    """(480, 640) uint8: what the camera sees of the objects at their poses in the world, nearer ones last.

    `noise` is the standard deviation in grey values, `blur` in pixels; tags in `hidden` are painted grey, and
    `swapped` paints another id's picture on a tag.
    """
    sees = camera.intrinsics
    picture = np.full((sees.height, sees.width), 110.0)
    for thing, pose in things:
        for tag in thing.tags:
            seen = camera.pose.inverse() @ pose @ Placed(position=tag.position, quaternion=tag.quaternion).pose
            if seen.rotation.apply([0.0, 0.0, 1.0]) @ seen.position < 0:  # else its back
                texture = np.full((10, 10), 90.0) if tag.id in hidden else face((swapped or {}).get(tag.id, tag.id))
                paint_face(picture, seen, tag.size * (1 + 2 * MARGIN), texture, sees)
    if blur:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    if noise:
        picture = picture + rng.normal(0, noise, picture.shape)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def face(tag: int) -> np.ndarray:
    """(10, 10) grey values: a tag of 8 x 8 cells and its white margin."""
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
    cells = cv2.aruco.generateImageMarker(dictionary, tag, 8)
    return np.pad(np.where(cells > 0, 220.0, 25.0), 1, constant_values=220.0)


def paint_face(picture: np.ndarray, seen: Pose, edge: float, texture: np.ndarray, sees: Intrinsics) -> None:
    """Paint a square at a pose in the camera's frame over the picture, by rays through the distorting lens."""
    outline = edge / 2 * np.array([[-1, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]])
    pixels, _ = cv2.projectPoints(outline, seen.rotation.as_rotvec(), seen.position, sees.k, sees.d)
    low = np.maximum(np.floor(pixels.reshape(4, 2).min(0)).astype(int) - 2, 0)
    high = np.minimum(np.ceil(pixels.reshape(4, 2).max(0)).astype(int) + 3, (sees.width, sees.height))
    if (low >= high).any():
        return
    inside = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5  # a pixel's middle has whole coordinates
    u = (np.arange(low[0], high[0])[:, None] + inside).ravel()
    v = (np.arange(low[1], high[1])[:, None] + inside).ravel()
    points = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 1, 2)  # (rows * columns, 1, 2)
    rays = cv2.undistortPoints(points, sees.k, sees.d if len(sees.d) else None).reshape(-1, 2)
    rays = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
    axes = seen.rotation.as_matrix()
    depth = (axes[:, 2] @ seen.position) / (rays @ axes[:, 2])
    across = (rays * depth[:, None] - seen.position) @ axes[:, :2] / edge + (0.5, -0.5)  # (n, 2): x 0..1, y 0..-1
    cell = np.floor(across * (len(texture), -len(texture))).astype(int)
    hit = ((cell >= 0) & (cell < len(texture))).all(1) & (depth > 0)
    value = np.where(hit, texture[np.clip(cell[:, 1], 0, 9), np.clip(cell[:, 0], 0, 9)], 0.0)
    shape = (high[1] - low[1], SAMPLES, high[0] - low[0], SAMPLES)
    cover, light = (x.reshape(shape).mean((1, 3)) for x in (hit.astype(float), value))
    patch = picture[low[1] : high[1], low[0] : high[0]]
    patch[:] = light + (1 - cover) * patch
