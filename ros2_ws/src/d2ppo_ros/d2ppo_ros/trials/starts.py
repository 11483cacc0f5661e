"""Pictures of each start state as it was first set up, so that a person can set it up the same for the next policy."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d2ppo_core.files import atomic_path

FOLDER = "starts"
WIDEST, SMALL = 960, 320  # pixels of a picture on the page
PLAIN = re.compile(r"\w[\w.-]*")  # a camera's name that can be a file's


def jpeg(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) RGB uint8 for the page."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    small = max(image.size) <= SMALL  # is shown enlarged, and every blemish with it
    image.save(buffer, "JPEG", quality=95 if small else 80, subsampling=0 if small else 2)
    return buffer.getvalue()


def _path(folder: Path, start: int, camera: str) -> Path:
    return folder / FOLDER / f"start{start + 1:03d}-{camera}.jpg"


def keep(folder: Path, start: int, rig: Any) -> None:
    """What every camera sees now, unless this start state has its pictures already."""
    for camera in rig.status().cameras:
        path, found = _path(folder, start, camera), rig.picture(camera)
        if PLAIN.fullmatch(camera) and found is not None and not path.exists():
            with atomic_path(path) as partial:
                partial.write_bytes(jpeg(found[1]))


def of(folder: Path, start: int | None, camera: str) -> bytes | None:
    """The picture of a start state; None: there is none."""
    if start is None or not PLAIN.fullmatch(camera):
        return None
    path = _path(folder, start, camera)
    return path.read_bytes() if path.exists() else None


def cameras(folder: Path, start: int | None, names: list[str]) -> list[str]:
    """Those of the cameras that have a picture of this start state."""
    plain = [name for name in names if PLAIN.fullmatch(name)]
    return [name for name in plain if start is not None and _path(folder, start, name).exists()]
