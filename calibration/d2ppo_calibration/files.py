"""Reading what people and programs left: pictures, and JSON or YAML that is checked as it comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import yaml

from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import atomic_path
from d2ppo_core.frozen import Frozen
from d2ppo_core.tasks import validated

File = TypeVar("File", bound=Frozen)


def read(model: type[File], path: str | Path) -> File:
    """A file (JSON, or YAML, of which JSON is a part) as the model it must be."""
    return validated(model, read_values(path), str(path))


def read_values(path: str | Path) -> Any:
    """What a JSON or YAML file holds."""
    path = Path(path)
    try:
        with explain_os_errors("reading", path):
            text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise UserError(f"{path} is not {kind}: {' '.join(str(error).split())}; correct or remove it") from error


def read_picture(path: str | Path) -> np.ndarray:
    """(h, w, 3) uint8 BGR."""
    with explain_os_errors("reading", path):
        content = np.fromfile(path, dtype=np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if picture is None:
        raise UserError(f"{path} is no whole picture; use PNG or JPEG, or take this view out of the folder")
    return picture


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """(h, w) or (h, w, 3) BGR uint8, as PNG, atomically."""
    done, content = cv2.imencode(".png", picture)
    if not done:
        raise UserError(f"{path}: a picture of shape {picture.shape} cannot be written; it must hold pixels")
    with atomic_path(path) as partial:
        content.tofile(partial)
