"""What is known beforehand, as files: which tags an object carries and where, where each camera stands and how it sees.

Objects file (YAML or JSON), one tag on the top of a cube:

    name: cube
    tags:
      - {id: 0, size: 0.03, position: [0, 0, 0.02], quaternion: [0, 0, 0, 1]}

Cameras file:

    cameras:
      - name: front
        position: [1.0, 0.0, 1.4]
        quaternion: [0.65, 0.65, -0.27, -0.27]
        intrinsics: {width: 640, height: 480, matrix: [600, 0, 319.5, 0, 600, 239.5, 0, 0, 1], distortion: []}

A tag's frame has its origin in the tag's middle, x to the right and y up as `cv2.aruco.generateImageMarker` draws the
tag, z out of it towards the viewer. A camera's frame is the optical one: x right, y down, z into the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from pydantic import Field, model_validator

from d2ppo_core import placed
from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.frozen import Frozen
from d2ppo_core.lens import Lens
from d2ppo_core.tasks import validated

from .poses import Pose

TAGS = 587  # ids of the family 36h11
DISTORTIONS = (0, 4, 5, 8, 12, 14)  # how many coefficients of OpenCV's models there may be
MODELS = ("", "plumb_bob", "rational_polynomial")

Metres = Annotated[float, Field(gt=0)]
File = TypeVar("File", bound=Frozen)


class Placed(placed.Placed):
    """Something with a pose in a frame that its owner names."""

    @property
    def pose(self) -> Pose:
        return Pose.of(self.position, self.quaternion)


class Tag(Placed):
    """One AprilTag 36h11, in the object's frame."""

    id: Annotated[int, Field(ge=0, lt=TAGS)]
    size: Metres  # edge of the black square, without the white margin


class TaggedObject(Frozen):
    """A rigid thing with tags on it. Its frame is that of the policy's body (of Lift: the cube's middle)."""

    name: Annotated[str, Field(min_length=1)]
    tags: Annotated[tuple[Tag, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> TaggedObject:
        ids = [tag.id for tag in self.tags]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"tag {', '.join(map(str, twice))} is there twice; each id may be on one face only")
        return self

    def tag(self, number: int) -> Tag | None:
        return next((tag for tag in self.tags if tag.id == number), None)


class Intrinsics(Lens):
    """How a camera that looks for tags sees, by any node's camera_info."""

    distortion: tuple[float, ...] = ()  # k1 k2 p1 p2 [k3 [k4 k5 k6 ...]], the models plumb_bob and rational_polynomial

    @model_validator(mode="after")
    def _plausible(self) -> Intrinsics:
        if len(self.distortion) not in DISTORTIONS:
            raise ValueError(f"{len(self.distortion)} distortion coefficients; there may be {DISTORTIONS}")
        if self.matrix[0] <= 0 or self.matrix[4] <= 0 or self.matrix[8] != 1:
            raise ValueError("the camera matrix needs positive focal lengths and a 1 at its end; calibrate the camera")
        return self

    @property
    def focal(self) -> float:
        """Pixels: the geometric mean of both focal lengths."""
        return float(np.sqrt(self.matrix[0] * self.matrix[4]))


class PlacedCamera(Placed):
    """A camera's optical frame in the world; without intrinsics they are taken from its camera_info."""

    name: Annotated[str, Field(min_length=1)]
    intrinsics: Intrinsics | None = None


class Cameras(Frozen):
    """All cameras that look at the object."""

    cameras: Annotated[tuple[PlacedCamera, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> Cameras:
        if len({camera.name for camera in self.cameras}) < len(self.cameras):
            raise ValueError("two cameras have the same name")
        return self


def read_object(path: str | Path) -> TaggedObject:
    """The object described by a YAML or JSON file."""
    return _read(TaggedObject, path)


def read_cameras(path: str | Path) -> tuple[PlacedCamera, ...]:
    """The cameras described by a YAML or JSON file."""
    return _read(Cameras, path).cameras


def intrinsics_of(
    width: int, height: int, matrix: Sequence[float], model: str, distortion: Sequence[float], camera: str
) -> Intrinsics:
    """From a CameraInfo's width, height, k, distortion_model and d; refuses a camera that nobody calibrated."""
    if model not in MODELS:
        raise UserError(
            f"the camera_info of camera {camera} has the distortion model '{model}'; only {', '.join(MODELS[1:])} are "
            "known: rectify the images, or calibrate the camera with one of these"
        )
    numbers = {"matrix": [float(v) for v in matrix], "distortion": [float(v) for v in distortion]}
    sees = {"width": int(width), "height": int(height), **numbers}
    return validated(Intrinsics, sees, f"the camera_info of camera {camera}")


def _read(model: type[File], path: str | Path) -> File:
    with explain_os_errors("reading", path):
        text = Path(path).read_text(encoding="utf-8")
    try:
        values: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}; correct it") from error
    return validated(model, values, str(path))
