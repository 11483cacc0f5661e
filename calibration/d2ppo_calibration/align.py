"""From the calibrated camera to the simulated one: the crop with the policy's field of view, the simulator's pose.

MuJoCo's cameras look along -z with y up; optical frames look along z with y down.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError
from d2ppo_core.lens import Crop, Intrinsics, crop_field_of_view
from d2ppo_core.observation import fit_image

from .checks import Check
from .poses import apart

TO_MUJOCO = np.diag([1.0, -1.0, -1.0, 1.0])  # optical <-> MuJoCo, its own inverse
SHOWN = 384  # pixels: height of the pictures for people


def view_checks(sees: Intrinsics, crop: Crop, camera: Camera) -> list[Check]:
    """How well the crop stands for the policy's camera."""
    corner = np.array([[crop.x, crop.y], [crop.x + crop.width, crop.y + crop.height]]) - 0.5
    u, v = np.meshgrid(*np.linspace(corner[0], corner[1], 9).T)
    straight = np.stack([u, v], axis=-1).reshape(-1, 2)  # where a lens without distortion would show (81) points
    rays = np.column_stack([(straight - sees.k[:2, 2]) / np.diag(sees.k)[:2], np.ones(len(straight))])
    bent, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), sees.k, sees.d)
    scale = camera.height / crop.height
    off = np.array([crop.x + crop.width / 2, crop.y + crop.height / 2]) - 0.5 - sees.k[:2, 2]
    fov = crop_field_of_view(sees, crop)
    lens = scale * np.linalg.norm(bent.reshape(-1, 2) - straight, axis=1).max()
    return [
        Check(name="field of view, off by", value=abs(fov - camera.field_of_view), unit="deg",
              required=2, good=0.5),
        Check(name="axis from the middle", value=float(scale * np.linalg.norm(off)), unit="px of the policy",
              required=2, good=0.5),
        Check(name="bent by the lens, most", value=float(lens), unit="px of the policy", required=3, good=1),
        Check(name="pixels for each of the policy's", value=1 / scale, unit="", required=1, good=1.5, better="more"),
    ]  # fmt: skip


def policy_view(picture: np.ndarray, crop: Crop, camera: Camera) -> np.ndarray:
    """(H, W, 3) uint8 as the contract states it, of a real picture (h, w, 3) BGR: what the policy will see."""
    return fit_image(np.ascontiguousarray(crop.of(picture)), camera, colour="bgr")


def mujoco_camera(body_camera: np.ndarray, name: str, fovy: float) -> dict[str, Any]:
    """A camera of MJCF, inside the body in whose frame (4, 4) its optical frame is given."""
    turned = body_camera @ TO_MUJOCO
    position = turned[:3, 3].round(9).tolist()
    x, y, z, w = Rotation.from_matrix(turned[:3, :3]).as_quat(canonical=True).round(9).tolist()
    numbers = {"pos": position, "quat": [w, x, y, z], "fovy": round(fovy, 6)}
    at, quat = (" ".join(f"{v:.9g}" for v in numbers[key]) for key in ("pos", "quat"))
    numbers["mjcf"] = f'<camera name="{name}" mode="fixed" pos="{at}" quat="{quat}" fovy="{numbers["fovy"]:g}"/>'
    return numbers


def optical(body_mujoco: np.ndarray) -> np.ndarray:
    """The optical frame of a camera at this pose (4, 4) in MuJoCo's convention."""
    return body_mujoco @ TO_MUJOCO


def difference(ours: np.ndarray, theirs: np.ndarray, ours_fov: float, theirs_fov: float) -> list[Check]:
    """How far the real camera is from the one that the policy was trained with: what domain randomisation must bear."""
    metres, degrees = apart(ours, theirs)
    return [
        Check(name="camera from the policy's", value=1000 * metres, unit="mm", required=50, good=10),
        Check(name="turned from the policy's", value=degrees, unit="deg", required=5, good=1),
        Check(
            name="field of view from the policy's", value=abs(ours_fov - theirs_fov), unit="deg", required=2, good=0.5
        ),
    ]


def comparison(real: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """(h, 4 w, 3): real, simulated, half of each, and the simulation's edges over the real one; both are (h, w, 3)."""
    if real.shape != simulated.shape:
        raise UserError(f"the pictures are {real.shape} and {simulated.shape}; they must be of one size")
    size = (SHOWN * real.shape[1] // real.shape[0], SHOWN)
    real, simulated = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA if picture.shape[0] > SHOWN else
                                  cv2.INTER_NEAREST) for picture in (real, simulated))  # fmt: skip
    edges = cv2.Canny(cv2.GaussianBlur(simulated, (0, 0), 1.5), 30, 90) > 0
    outlined = real.copy()
    outlined[edges] = (0, 255, 0)
    return np.concatenate([real, simulated, cv2.addWeighted(real, 0.5, simulated, 0.5, 0), outlined], axis=1)
