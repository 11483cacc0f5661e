"""Error bars of success rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Success rate with Wilson's score interval (Wilson 1927), which stays inside [0, 1]."""
    if episodes < 1:
        raise ValueError("a success rate needs at least one episode")
    z, p, n = NormalDist().inv_cdf(0.5 + confidence / 2), successes / episodes, episodes
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> Interval:
    """Difference `second - first` of two success rates on the same seeds (Agresti & Min 2005).

    b seeds only the second solves, c only the first: (b - c)/n with half a pseudo-episode added to each cell of the
    2x2 table, so the interval has a width even when every pair agrees.
    """
    if len(first) != len(second) or not first:
        raise ValueError("a paired difference needs the same seeds, at least one")
    z, n = NormalDist().inv_cdf(0.5 + confidence / 2), len(first)
    b = sum(not f and s for f, s in zip(first, second, strict=True))
    c = sum(f and not s for f, s in zip(first, second, strict=True))
    b_, c_, n_ = b + 0.5, c + 0.5, n + 2
    centre, variance = (b_ - c_) / n_, (b_ + c_ - (b_ - c_) ** 2 / n_) / n_**2
    half = z * math.sqrt(variance)
    return Interval((b - c) / n, max(-1.0, centre - half), min(1.0, centre + half))
