"""How a real camera sees, and which part of its picture shows what the policy's camera would: without OpenCV.

Calibration finds the numbers, the camera's node uses them; both must cut the same part out of the same picture.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from .contract import Camera
from .errors import UserError, explain_os_errors
from .frozen import Frozen, Positive
from .tasks import validated

LENGTHS = (5, 8)  # coefficients of the models plumb_bob and rational_polynomial
MODELS = {5: "plumb_bob", 8: "rational_polynomial"}


class Lens(Frozen):
    """As in ROS's CameraInfo: matrix and distortion of one picture size. Who uses it says what is plausible."""

    width: Positive  # pixels
    height: Positive  # pixels
    matrix: Annotated[tuple[float, ...], Field(min_length=9, max_length=9)]  # row by row, pixels
    distortion: tuple[float, ...] = ()

    @property
    def k(self) -> np.ndarray:
        """(3, 3) pixels."""
        return np.array(self.matrix).reshape(3, 3)

    @property
    def d(self) -> np.ndarray:
        """(n,) distortion coefficients."""
        return np.array(self.distortion)


class Intrinsics(Lens):
    """What calibration finds."""

    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)  # k1 k2 p1 p2 k3 [k4 k5 k6]

    @model_validator(mode="after")
    def _plausible(self) -> Intrinsics:
        if len(self.distortion) not in LENGTHS:
            raise ValueError(f"{len(self.distortion)} distortion coefficients; there must be 5 or 8")
        if self.matrix[0] <= 0 or self.matrix[4] <= 0 or self.matrix[6:] != (0.0, 0.0, 1.0):
            raise ValueError(
                "the camera matrix needs positive focal lengths and a last row of 0 0 1; calibrate the camera"
            )
        return self

    @property
    def model(self) -> str:
        """ROS's name of the lens's model."""
        return MODELS[len(self.distortion)]

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        return self.width, self.height

    @property
    def field_of_view(self) -> float:
        """Degrees, from the picture's upper to its lower edge, without the lens's distortion."""
        f, c = self.matrix[4], self.matrix[5] + 0.5  # pixel 0 reaches from -0.5 to 0.5
        return float(np.degrees(np.arctan2(c, f) + np.arctan2(self.height - c, f)))


@dataclass(frozen=True)
class Crop:
    """The part of the real picture that shows what the policy's camera would: pixels."""

    x: int
    y: int
    width: int
    height: int

    def of(self, picture: np.ndarray) -> np.ndarray:
        """(h, w, ...) cut."""
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]


def crop_for(sees: Intrinsics, camera: Camera) -> Crop:
    """The part of the contract's shape and field of view about the optical axis, as far as the picture has it."""
    middle = np.array([sees.matrix[2], sees.matrix[5]]) + 0.5  # the axis, from the picture's corner
    height = 2 * sees.matrix[4] * np.tan(np.radians(camera.field_of_view) / 2)
    wanted = np.array([height * camera.width / camera.height, height])
    room = 2 * np.minimum(middle, np.array(sees.size) - middle)
    size = wanted * min(1.0, *(room / wanted))
    low, high = (np.round(end).astype(int) for end in (middle - size / 2, middle + size / 2))
    low, high = np.maximum(low, 0), np.minimum(high, sees.size)
    width, height = high - low
    return Crop(int(low[0]), int(low[1]), int(width), int(height))


def crop_field_of_view(sees: Intrinsics, crop: Crop) -> float:
    """Degrees, vertical: of the crop, without the lens's distortion."""
    return float(2 * np.degrees(np.arctan(crop.height / 2 / sees.matrix[4])))


@dataclass(frozen=True)
class CalibratedCamera:
    """What a calibration's file says of the camera itself."""

    path: Path
    camera: str  # the name under which it was calibrated
    made: str  # UTC, ISO 8601
    sees: Intrinsics
    digest: str  # of the whole calibration


def content_digest(values: dict[str, Any]) -> str:
    """Hex sha256 that names a calibration: of everything in it but `digest`."""
    rest = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_calibrated(path: str | Path) -> CalibratedCamera:
    """The camera of a file that `d2ppo calibrate` wrote, unchanged since."""
    try:
        with explain_os_errors("reading", path):
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = {name: values[name] for name in ("camera", "made", "digest")}
        sees = values["intrinsics"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no calibration ({error}); make one with `d2ppo calibrate solve`") from error
    if parts["digest"] != content_digest(values):
        raise UserError(f"{path} was changed after it was written (its digest differs); calibrate again, or restore it")
    sees = validated(Intrinsics, sees, f"{path}: intrinsics")
    return CalibratedCamera(Path(path), str(parts["camera"]), str(parts["made"]), sees, parts["digest"])
