"""How motion changes where one chunk follows another, against how it changes inside a chunk.

At each control step n of 1/20 s, with the goals g, the reference's velocity v and the measured positions p:

    goal step             |g_n - g_(n-1)|                       mm
    goal velocity         |g_n - 2 g_(n-1) + g_(n-2)| / dt      mm/s
    reference velocity    |v_n - v_(n-1)|                       mm/s, where poses are commanded
    measured velocity     |p_(n+1) - 2 p_n + p_(n-1)| / dt      mm/s

A border reaches from the first step that the old chunk has no action for to the one after the new chunk's first; its
value is the largest in there. Inside a chunk the values are the largest of each two steps in a row, so that both are
maxima over as much time as long as nobody waits. Of two arms the larger counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

QUANTITIES = {  # name -> (heading, unit)
    "goal_step": ("goal step", "mm"),
    "goal_velocity": ("goal velocity", "mm/s"),
    "reference_velocity": ("reference velocity", "mm/s"),
    "measured_velocity": ("measured velocity", "mm/s"),
}
REACH = 2  # steps: how far a window reaches from a chunk's first step on
MM = 1000.0


def changes(goal: np.ndarray, reference: np.ndarray, measured: np.ndarray, dt: float) -> dict[str, np.ndarray]:
    """Every quantity at each of T steps, (T,); NaN where the steps before it are missing.

    Args:
        goal, reference: (T, n, 3) m, m/s of n arms. measured: (T + 1, n, 3) m. dt: s of a step.
    """
    return {
        "goal_step": _size(np.diff(goal, axis=0), 1) * MM,
        "goal_velocity": _size(np.diff(goal, 2, axis=0), 2) * MM / dt,
        "reference_velocity": _size(np.diff(reference, axis=0), 1) * MM,
        "measured_velocity": _size(np.diff(measured, 2, axis=0), 1) * MM / dt,
    }


def _size(vectors: np.ndarray, missing: int) -> np.ndarray:
    """(T - missing, n, 3) -> (T,): length of the longest of n, the first `missing` steps NaN."""
    return np.concatenate([np.full(missing, np.nan), np.linalg.norm(vectors, axis=2).max(1)])


def windows(chunk: np.ndarray) -> tuple[list[range], list[range]]:
    """Steps of the borders, and of the pairs inside chunks.

    Args:
        chunk: (T,) which chunk each step comes from; negative: none. The start from rest belongs to neither.
    """
    given = np.flatnonzero(chunk >= 0)
    if not len(given):
        return [], []
    changed = [(old, new) for old, new in pairwise(given) if chunk[old] != chunk[new]]
    borders = [range(old + 1, min(new + REACH, len(chunk))) for old, new in changed]
    free = chunk >= 0
    for taken in (range(given[0], min(given[0] + REACH, len(chunk))), *borders):
        free[taken.start : taken.stop] = False
    return borders, [range(n, n + REACH) for n in range(len(chunk) - 1) if free[n] and free[n + 1]]


def largest(series: np.ndarray, where: Iterable[range]) -> list[float]:
    """The largest value of each window; windows without one are left out."""
    found = [series[window.start : window.stop] for window in where]
    return [float(np.nanmax(values)) for values in found if np.isfinite(values).any()]
