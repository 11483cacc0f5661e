"""The picture that a policy gets, as a file for people, with the words that say which way up it is.

Run in a process of its own (`python -m d2ppo_core.picture TASK FILE`): opening OpenGL may end the process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .contract import Camera
from .envs import EnvRequest, make_env
from .errors import UserError
from .tasks import load_task, observation_spec
from .video import write_png

SEED = 0
LARGEST = 384  # pixels; small pictures are enlarged to about this height, each pixel to a block


def policy_picture(task_name: str, path: Path) -> dict[str, Any]:
    """Start an episode of the task, write what its cameras see, side by side, and describe it."""
    task = load_task(task_name)
    spec = observation_spec(task)
    if not spec.cameras:
        raise UserError(f"task '{task_name}' has no cameras; choose one of those that end in _image")
    request = EnvRequest(task.environment, 1, task.max_episode_steps, workers=1, cameras=spec.cameras)
    env = make_env(task.simulator, request)
    try:
        raw = env.reset([0], [SEED])
        images = {camera.name: raw[camera.key][0, -1] for camera in spec.cameras}  # [1, To, H, W, 3] -> [H, W, 3]
    finally:
        env.close()
    enlarged = [np.kron(upright(images[c.name], c), _block(c.height)) for c in spec.cameras]
    tallest = max(len(picture) for picture in enlarged)
    padded = [np.pad(picture, ((0, tallest - len(picture)), (0, 0), (0, 0))) for picture in enlarged]
    write_png(path, np.concatenate(padded, axis=1))
    return {"file": str(path), "lines": [line for c in spec.cameras for line in describe(images[c.name], c)]}


def _block(height: int) -> np.ndarray:
    size = max(1, LARGEST // height)
    return np.ones((size, size, 1), dtype=np.uint8)


def upright(image: np.ndarray, camera: Camera) -> np.ndarray:
    """From what the contract states to what a picture file means: RGB, the top row first."""
    image = image[::-1] if camera.origin == "bottom_left" else image
    return image[:, :, ::-1] if camera.colour == "bgr" else image


def describe(image: np.ndarray, camera: Camera) -> list[str]:
    """Which way up (H, W, 3) uint8 is, in numbers that can be compared with the picture file."""
    shown = upright(image, camera)
    corners = {
        "top left": shown[0, 0], "top right": shown[0, -1], "bottom left": shown[-1, 0], "bottom right": shown[-1, -1],
    }  # fmt: skip
    first = "upper" if camera.origin == "top_left" else "lower"
    half = len(shown) // 2
    return [
        f"{camera.name}: {camera.height} x {camera.width} {image.dtype}, row 0 is the {first} edge, channels "
        f"{', '.join(camera.colour)}; {camera.field_of_view:g} degrees, reflections "
        f"{'on' if camera.reflections else 'off'}, multisampling {camera.multisampling}",
        "  red, green, blue of the " + ", ".join(f"{name} {tuple(map(int, c))}" for name, c in corners.items()),
        f"  mean brightness: upper half {shown[:half].mean():.0f}, lower half {shown[half:].mean():.0f}",
    ]


if __name__ == "__main__":
    try:
        print(json.dumps(policy_picture(sys.argv[1], Path(sys.argv[2]))))
    except UserError as error:
        sys.exit(str(error))
