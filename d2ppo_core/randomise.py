"""Domain randomisation as commands hand it to a simulator: plain numbers, so that a run's settings say all of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .conf.schema import RandomiseConfig
from .errors import UserError, explain_os_errors


def randomisation(config: RandomiseConfig, wanted: bool = True) -> dict[str, Any]:
    """The terms for `EnvRequest.randomise`, measured noise read from its file; {} where all are off or not wanted."""
    if not wanted:
        return {}
    terms = asdict(config)
    file = terms["observation_noise"].pop("file")
    terms["observation_noise"]["measured"] = measured_noise(Path(file)) if file else {}
    return {} if config == RandomiseConfig() else terms


def measured_noise(path: Path) -> dict[str, list[float]]:
    """`{key: [standard deviation of each number]}` from a JSON file, as measured in a recorded trial."""
    with explain_os_errors("reading", path):
        text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
        return {str(key): [float(std) for std in values] for key, values in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no list of measured noise ({error}); it must hold {{key: [standard deviation, ...]}} as JSON"
        ) from error
