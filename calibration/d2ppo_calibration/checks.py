"""Acceptance: each number beside the limit that it must keep, so that a person sees what to improve."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from d2ppo_core.frozen import Frozen


class Check(Frozen):
    """One number and its limits: `required` must be kept, `good` is what a careful calibration reaches."""

    name: str
    value: float
    unit: str
    required: float
    good: float
    better: Literal["less", "more"] = "less"

    @property
    def grade(self) -> str:
        """good, acceptable or BAD; what is not a number is BAD."""
        sign = 1 if self.better == "less" else -1
        if not math.isfinite(self.value) or sign * self.value > sign * self.required:
            return "BAD"
        return "good" if sign * self.value <= sign * self.good else "acceptable"


def table(checks: Iterable[Check]) -> str:
    """A line for each."""
    rows = [("", "measured", "required", "good", "")]
    for check in checks:
        sign = "<=" if check.better == "less" else ">="
        limits = (f"{sign} {v:g} {check.unit}".rstrip() for v in (check.required, check.good))
        rows.append((check.name, f"{check.value:.3g} {check.unit}".rstrip(), *limits, check.grade))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
