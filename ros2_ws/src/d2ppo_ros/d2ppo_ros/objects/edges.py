"""A tag's corners to a few hundredths of a pixel: where the straight lines through its four edges meet.

OpenCV's own choices either look at corners alone (off by a pixel where a cell has few) or search the whole picture
again for tens of milliseconds.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

CELLS = 8  # of a tag of the family 36h11 in each direction, its black border included
REACH = 0.75  # of a cell: how far to look for an edge on both sides; there is a whole black and a whole white cell
LEAST_REACH, MOST_REACH = 1.5, 4.0  # pixels
ROUNDS = 4  # the first corners are off by a pixel or two
ALONG = np.linspace(0.06, 0.94, 23)  # where on an edge to look; near its ends the neighbouring edge disturbs
ACROSS = np.linspace(-1, 1, 33)  # in units of the reach


def refined(grey: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Corners (4, 2) in pixels, clockwise, moved to where the edges in the image (H, W) say they are."""
    for _ in range(ROUNDS):
        corners = _once(grey, corners)
    return corners


def _once(grey: np.ndarray, corners: np.ndarray) -> np.ndarray:
    along = np.roll(corners, -1, axis=0) - corners  # (4, 2): edge i goes from corner i to the next
    length = np.linalg.norm(along, axis=1, keepdims=True)
    outwards = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.maximum(length, 1e-9)
    reach = np.clip(REACH / CELLS * _thickness(corners, outwards), LEAST_REACH, MOST_REACH)
    start = corners[:, None] + ALONG[:, None] * along[:, None]  # (4, m, 2)
    offset, weight = _edge_offsets(grey, start, outwards, reach)
    moved = np.stack([_line(o, w) for o, w in zip(offset, weight, strict=True)])  # (4, 2): at both ends, pixels
    first = corners + moved[:, :1] * outwards
    second = corners + along + moved[:, 1:] * outwards
    return np.stack([_meet(first[i - 1], second[i - 1], first[i], second[i], corners[i]) for i in range(4)])


def _thickness(corners: np.ndarray, outwards: np.ndarray) -> np.ndarray:
    """(4,) pixels from each edge to the middle of the opposite one."""
    middles = (corners + np.roll(corners, -1, axis=0)) / 2
    return np.sum((middles - np.roll(middles, 2, axis=0)) * outwards, axis=1)


def _edge_offsets(
    grey: np.ndarray, start: np.ndarray, outwards: np.ndarray, reach: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(4, m) pixels outwards from each start (4, m, 2) to the rise from black to white, and how steep it is."""
    across = reach[:, None] * ACROSS  # (4, k)
    points = start[:, :, None] + across[:, None, :, None] * outwards[:, None, None]  # (4, m, k, 2)
    light = map_coordinates(grey, [points[..., 1], points[..., 0]], np.float64, order=1, mode="nearest")
    rise = np.maximum(np.diff(light, axis=2), 0) ** 2  # (4, m, k - 1); squared: the noise beside the edge counts little
    weight = rise.sum(axis=2)
    middle = (across[:, 1:] + across[:, :-1]) / 2
    return (rise * middle[:, None]).sum(axis=2) / np.maximum(weight, 1e-9), weight


def _line(offset: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(2,) pixels: at the edge's two ends, the line that fits the offsets (m,) best."""
    if not weight.sum() > 0:
        return np.zeros(2)
    slope, level = np.polyfit(ALONG, offset, 1, w=np.sqrt(np.maximum(weight, 1e-6 * weight.max())))
    return np.array([level, level + slope])


def _meet(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """(2,) where the lines a b and c d meet; `otherwise` if they are parallel."""
    u, v = b - a, d - c
    across = u[0] * v[1] - u[1] * v[0]
    if abs(across) < 1e-6 * max(float(np.linalg.norm(u) * np.linalg.norm(v)), 1e-9):
        return otherwise
    w = c - a
    return a + u * (w[0] * v[1] - w[1] * v[0]) / across
