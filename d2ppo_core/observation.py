"""Raw observation -> model tensors. THE one pipeline: dataset, simulator and robot all go through it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .contract import Camera, ObservationSpec
from .envs import RawObservation
from .errors import UserError

if TYPE_CHECKING:  # a camera's process fits pictures and has no use for it: seconds of its start
    import torch
    from torch import Tensor


def state_vector(spec: ObservationSpec, raw: RawObservation) -> np.ndarray:
    """Concatenate the low-dimensional keys in the contract's order.

    Args:
        raw: for each key (..., size), any float type, SI units.

    Returns:
        float32 (..., Do): the only place where observations lose precision.

    Raises:
        UserError: a key is missing, has another size, or is not finite.
    """
    columns = []
    for key in spec.lowdim:
        if key.name not in raw:
            raise UserError(f"the observation lacks '{key.name}'; it has {', '.join(sorted(raw))}")
        value = np.asarray(raw[key.name])
        if value.shape[-1:] != (key.size,):
            raise UserError(f"observation '{key.name}' has shape {value.shape}, the policy expects (..., {key.size})")
        columns.append(value)
    state = np.concatenate(columns, axis=-1, dtype=np.float32)
    if not np.isfinite(state).all():
        bad = [key.name for key, column in zip(spec.lowdim, columns, strict=True) if not np.isfinite(column).all()]
        raise UserError(
            f"observation {', '.join(bad)} holds NaN or infinity; check the sensor or simulator it comes from"
        )
    return state


@dataclass(frozen=True)
class Observation:
    """What a policy sees at B decisions; the leading axes may be others, e.g. (T, N)."""

    state: Tensor  # (B, To, Do) float32, SI units
    images: Tensor | None = None  # (B, To, cameras, 3, H, W) uint8, in the contract's order of cameras

    def __len__(self) -> int:
        return len(self.state)

    def map(self, change: Callable[[Tensor], Tensor]) -> Observation:
        """The same change made to both."""
        return Observation(change(self.state), None if self.images is None else change(self.images))

    def __getitem__(self, index: Any) -> Observation:
        """Rows by number, slice or tensor of numbers."""
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Observation:
        """On another device; images travel as uint8."""
        return self.map(lambda tensor: tensor.to(device))

    def digest(self) -> str:
        """Names these very bits: 32 hex digits."""
        found = hashlib.blake2b(digest_size=16)
        for tensor in (self.state, self.images):
            if tensor is not None:
                found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


def model_observation(spec: ObservationSpec, raw: RawObservation, device: torch.device | str = "cpu") -> Observation:
    """Raw observation of n environments, keys (n, To, ...) oldest first -> model input."""
    import torch

    state = state_vector(spec, raw)  # [n, To, Do]
    if state.shape[1] != spec.history:
        raise UserError(f"the observation holds {state.shape[1]} time steps, the policy looks at {spec.history}")
    images = camera_images(spec.cameras, raw)
    if images is not None and images.shape[:2] != state.shape[:2]:
        raise UserError(
            f"the observation holds {' x '.join(map(str, images.shape[:2]))} pictures of a camera and "
            f"{' x '.join(map(str, state.shape[:2]))} states; there must be one for each environment and time step"
        )
    return Observation(torch.from_numpy(state), images).to(device)


def camera_images(cameras: tuple[Camera, ...], raw: RawObservation) -> Tensor | None:
    """Pictures (n, To, H, W, 3) uint8 of each camera -> (n, To, cameras, 3, H, W); None without cameras."""
    if not cameras:
        return None
    import torch

    pictures = []
    for camera in cameras:
        if camera.key not in raw:
            raise UserError(f"the observation lacks '{camera.key}'; it has {', '.join(sorted(raw))}")
        picture, size = np.asarray(raw[camera.key]), (camera.height, camera.width, 3)
        if picture.dtype != np.uint8 or picture.ndim != 5 or picture.shape[2:] != size:
            raise UserError(
                f"observation '{camera.key}' is {picture.dtype} {picture.shape}, the policy expects uint8 (n, To, "
                f"{', '.join(map(str, size))})"
            )
        pictures.append(torch.from_numpy(picture).movedim(-1, -3))  # [n, To, H, W, 3] -> [n, To, 3, H, W]
    return torch.stack(pictures, dim=2)  # [n, To, 3, H, W] each -> [n, To, cameras, 3, H, W]


def dimension_names(spec: ObservationSpec) -> list[str]:
    """One label for each number of the state vector, e.g. 'object[3]'."""
    return [f"{key.name}[{i}]" for key in spec.lowdim for i in range(key.size)]


def fit_image(picture: np.ndarray, camera: Camera, colour: str = "rgb", origin: str = "top_left") -> np.ndarray:
    """A real camera's picture as the policy's camera would show it: THE crop and resize of every real image.

    Cut to the contract's shape about the centre, then averaged over areas. A picture of the contract's size is not
    resampled, and one that also has its colour order and origin is returned as it is.

    Args:
        picture: (h, w, 3) uint8.
        colour, origin: how `picture` is stored, in the words of `contract.Camera`.

    Returns:
        (H, W, 3) uint8 as the contract states it.
    """
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        found = f"{getattr(picture, 'dtype', type(picture).__name__)} {getattr(picture, 'shape', '')}".strip()
        raise UserError(f"a picture for camera '{camera.name}' is {found}; it must be uint8 (height, width, 3)")
    if not picture.size or colour not in ("rgb", "bgr") or origin not in ("top_left", "bottom_left"):
        raise UserError(
            f"a picture for camera '{camera.name}' is {picture.shape}, {colour}, origin {origin}; it must hold pixels, "
            "rgb or bgr, with origin top_left or bottom_left"
        )
    picture = picture[::-1] if origin != camera.origin else picture
    picture = picture[:, :, ::-1] if colour != camera.colour else picture
    if picture.shape[:2] != (camera.height, camera.width):
        import cv2

        cut = _cut(picture, camera.width / camera.height)
        picture = cv2.resize(cut, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture)


def _cut(picture: np.ndarray, aspect: float) -> np.ndarray:
    """The largest part of (h, w, 3) about the centre that is `aspect` times as wide as high, to the pixel."""
    height, width = picture.shape[:2]
    new_height, new_width = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return np.ascontiguousarray(picture[top : top + new_height, left : left + new_width])
