"""How long the policy takes to answer, estimated from the answers of late."""

from __future__ import annotations

from collections import deque

import numpy as np


class Latency:
    """A quantile of the last `window` latencies (s), without the very first: that one is warm-up."""

    def __init__(self, window: int, quantile: float, initial: float) -> None:
        self.quantile, self.initial = quantile, initial
        self.recent: deque[float] = deque(maxlen=window)
        self.warm = False

    def add(self, seconds: float) -> None:
        """One answer's latency."""
        if self.warm:
            self.recent.append(seconds)
        self.warm = True

    @property
    def estimate(self) -> float:
        """Seconds; an observed value (never between two), and `initial` while there is none."""
        return float(np.quantile(self.recent, self.quantile, method="higher")) if self.recent else self.initial
