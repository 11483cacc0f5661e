"""Films of evaluation episodes: an MP4 and a filmstrip for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .envs import VectorEnv
from .errors import UserError
from .files import atomic_path

if TYPE_CHECKING:
    from .inference import Actor

SIZE = 256  # pixels, height and width
STRIP = 8  # pictures of a filmstrip


def film(actor: Actor, env: VectorEnv, seeds: list[int], folder: Path, name: str) -> list[Path]:
    """Film one episode for each seed, a picture at every control step, with the noise that evaluation used."""
    paths = []
    for seed in seeds:
        frames, success = _episode(actor, env, seed)
        outcome = "success" if success else "failure"
        paths.append(write_mp4(folder / f"{name}-{seed}-{outcome}.mp4", frames, env.action.control_hz))
        write_png(folder / f"{name}-{seed}-{outcome}.png", filmstrip(frames))
    return paths


def _episode(actor: Actor, env: VectorEnv, seed: int) -> tuple[list[np.ndarray], bool]:
    raw = env.reset([0], [seed])
    frames, chunk_index = [env.render(0, SIZE, SIZE)], 0
    while True:
        chunk = actor.act({key: value[:1] for key, value in raw.items()}, [seed], [chunk_index])
        chunk_index += 1
        for action in range(chunk.shape[1]):
            step = env.step([0], chunk[:, action : action + 1])
            raw = step.observation
            frames.append(env.render(0, SIZE, SIZE))
            if step.terminated[0] or step.truncated[0]:
                return frames, bool(step.success[0])


def filmstrip(frames: list[np.ndarray]) -> np.ndarray:
    """STRIP pictures, evenly spaced from first to last, side by side: (h, STRIP * w, 3) uint8."""
    chosen = np.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().astype(int)
    return np.concatenate([frames[n] for n in chosen], axis=1)


def write_mp4(path: Path, frames: list[np.ndarray], fps: int) -> Path:
    """H.264, which every browser plays."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError("videos need imageio-ffmpeg; run `make setup`, or leave evaluation.video at 0") from error
    height, width = frames[0].shape[:2]
    with atomic_path(path) as partial:
        writer = imageio_ffmpeg.write_frames(
            str(partial),
            (width, height),
            fps=fps,
            codec="libx264",
            macro_block_size=2,
            output_params=["-f", "mp4", "-crf", "28"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
    return path


def write_png(path: Path, picture: np.ndarray) -> Path:
    """An RGB picture (h, w, 3) uint8."""
    from matplotlib.image import imsave

    with atomic_path(path) as partial:
        imsave(partial, picture, format="png")
    return path
