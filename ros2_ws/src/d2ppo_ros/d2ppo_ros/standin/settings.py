"""What a stand-in arm is told when it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from d2ppo_core.errors import UserError

from ..parameters import build, default_of, parameter

CUBE = 0.021  # m, half an edge of the cube
OPEN = 0.0416  # m between the fingers at robosuite's start


@dataclass(frozen=True)
class StandInSettings:
    """Of the stand-in's process."""

    host: str = parameter("127.0.0.2", "local addresses of the arms, with commas: ports 1337 and 1338 of each")
    control: int = parameter(1400, "port of the first address at which faults are asked for; 0: any", low=0, high=65535)
    base: list[float] = parameter([0.0, 0.0, 0.0], "where each arm stands in the world, 3 numbers an arm", unit="m")
    yaw: list[float] = parameter([0.0, 0.0], "each arm's base turned about the vertical", unit="rad")
    table: float = parameter(-1.0, "height of the table's top in the world; -1: no table", unit="m", low=-1.0, high=3.0)
    cube: bool = parameter(False, "a cube of 4.2 cm lies on the table")
    speed: float = parameter(1.0, "robot time to wall time at best; 0: as fast as it goes", low=0.0, high=100.0)


def parse(words: Sequence[str]) -> StandInSettings:
    """key=value words as settings; numbers with commas where there are several."""
    kinds = {field.name: type(default_of(field)) for field in fields(StandInSettings)}
    values: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or name not in kinds:
            raise UserError(f"'{word}' is no option of the stand-in; give {', '.join(kinds)} as key=value")
        try:
            values[name] = _value(kinds[name], text)
        except ValueError:
            values[name] = text  # `build` says what it should be
    return build(StandInSettings, values, "the stand-in")


def _value(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind is list:
        return [float(part) for part in text.split(",")]
    return kind(text)
