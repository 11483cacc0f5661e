"""Tests and bands of a study. The unit is the training seed: episodes of one policy are no independent trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..statistics import Interval

EXACT = 16  # pairs up to which every assignment of signs is counted
DRAWS = 100_000  # random assignments beyond


def sign_flip_test(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the paired permutation test: how often |mean| is as large when each pair's order is a coin toss.

    Exact for up to 16 pairs, so it cannot be below 2 / 2^n; beyond, p = (1 + as large) / (1 + draws).
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or not len(d):
        raise ValueError("a paired test needs at least one pair")
    observed = abs(d.sum()) * (1 - 1e-12) - 1e-12  # sums of equal terms in another order may differ in the last bit
    if len(d) <= EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)  # [2^n, 1] >> [n]
        return float(np.mean(np.abs(signs @ d) >= observed))
    signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (DRAWS, len(d)))
    return float((1 + np.sum(np.abs(signs @ d) >= observed)) / (1 + DRAWS))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) p-values corrected for their number: the n-th smallest times what is left, made to rise."""
    values, corrected, highest = np.asarray(p, dtype=float), np.empty(len(p)), 0.0
    for rank, index in enumerate(np.argsort(values, kind="stable")):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected.tolist()


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean difference over training seeds with Student's interval, cut to [-1, 1]; of one seed that whole range."""
    v = np.asarray(values, dtype=float)
    if len(v) < 2:
        return Interval(float(v[0]), -1.0, 1.0)
    half = stats.t.ppf(0.5 + confidence / 2, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v))
    mean = float(v.mean())
    return Interval(mean, max(-1.0, mean - float(half)), min(1.0, mean + float(half)))


@dataclass(frozen=True)
class Line:
    """A least-squares line with the confidence band of its mean."""

    slope: Interval
    p: float  # of a slope of 0
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def line_with_band(
    x: Sequence[float], y: Sequence[float], at: Sequence[float], confidence: float = 0.95
) -> Line | None:
    """Ordinary least squares of y on x, evaluated `at`; None with fewer than three points or two different x."""
    x_, y_, at_ = (np.asarray(v, dtype=float) for v in (x, y, at))
    if len(x_) < 3 or len(np.unique(x_)) < 2:
        return None
    spread, free = ((x_ - x_.mean()) ** 2).sum(), len(x_) - 2
    slope = float(((x_ - x_.mean()) * (y_ - y_.mean())).sum() / spread)
    residual = y_ - y_.mean() - slope * (x_ - x_.mean())
    variance = float((residual**2).sum() / free)
    t = float(stats.t.ppf(0.5 + confidence / 2, free))
    error = np.sqrt(variance / spread)
    p = float(2 * stats.t.sf(abs(slope) / error, free)) if error > 0 else float(slope == 0)
    mean = y_.mean() + slope * (at_ - x_.mean())
    half = t * np.sqrt(variance * (1 / len(x_) + (at_ - x_.mean()) ** 2 / spread))
    return Line(Interval(slope, slope - t * error, slope + t * error), p, at_, mean, mean - half, mean + half)
