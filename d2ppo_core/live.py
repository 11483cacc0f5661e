"""A live camera with the robot beside it, for programs that know neither: the robot's house registers where they come
from (entry-point group `d2ppo.live_views`; name = "module:function", called with what follows the colon of NAME:...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points

import numpy as np

from .errors import UserError
from .placed import Placed


@dataclass(frozen=True)
class LiveView:
    """One picture, and how the robot stood when it was taken."""

    name: str
    picture: np.ndarray  # (h, w, 3) uint8 BGR, the first row on top
    time: float  # s, when it was taken
    flange: Placed | None = None  # in the robot's base; None: not known at that time
    joints: tuple[float, ...] = ()  # rad
    speed: float = 0.0  # rad/s, of the fastest joint about that time


Views = Callable[[str], Iterator[LiveView]]


def live_views(source: str) -> Iterator[LiveView] | None:
    """The views of "NAME:..."; None where nobody has registered that NAME: then it is a file or a folder."""
    name, colon, rest = source.partition(":")
    found = [point for point in entry_points(group="d2ppo.live_views") if point.name == name] if colon else []
    if not found:
        return None
    try:
        views: Views = found[0].load()
    except ImportError as error:
        raise UserError(f"'{name}:' needs a part that is not installed ({error}); run `make {name}`") from error
    return views(rest)
