"""Advantages over action chunks, and the running scale of rewards. One time step of the MDP is one chunk."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

REWARD_CLIP = 10.0
RETURN_DISCOUNT = 0.99  # of the running return; fixed, not the training discount (as released)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    discount: float,
    lambda_: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016) with time-outs told from terminations.

        delta_t = r_t + gamma V(s_{t+1}) (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma lambda A_{t+1} (1 - ended_t)

    Args, all (T, N):
        next_value: V of the state that the chunk led to: at the end of an episode its final observation, never the
            first one of the next episode; in the last row the observation after the window.
        terminated: the task ended, nothing follows. ended: terminated or truncated, the recursion is cut.
    """
    delta = reward + discount * next_value * (1 - terminated) - value
    advantage, following = torch.zeros_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        following = delta[t] + discount * lambda_ * following * (1 - ended[t])
        advantage[t] = following
    return advantage


class RewardScaler:
    """Divides rewards by the running standard deviation of their discounted return; no mean is subtracted.

    ret <- r + 0.99 ret (0 at an episode's first chunk);  r <- clip(r / sqrt(Var(ret) + 1e-8), +-10)
    """

    def __init__(self, envs: int) -> None:
        self.running = np.zeros(envs)  # ret of each environment
        self.count, self.mean, self.variance = 1e-4, 0.0, 1.0

    def __call__(self, reward: np.ndarray, first: np.ndarray) -> np.ndarray:
        """reward, first (T, N); `first` marks the first chunk of an episode. Returns scaled rewards (T, N)."""
        returns = np.empty_like(reward)
        for t in range(len(reward)):
            self.running = reward[t] + (1 - first[t]) * RETURN_DISCOUNT * self.running
            returns[t] = self.running
        self._merge(returns)
        return np.clip(reward / np.sqrt(self.variance + 1e-8), -REWARD_CLIP, REWARD_CLIP)

    def _merge(self, values: np.ndarray) -> None:
        """Chan's parallel update of mean and variance with a batch of values."""
        total, delta = self.count + values.size, values.mean() - self.mean
        m2 = self.variance * self.count + values.var() * values.size + delta**2 * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count, self.variance = total, m2 / total

    def state(self) -> dict[str, float | list[float]]:
        """For the resume file."""
        return {
            "running": self.running.tolist(),
            "count": self.count,
            "mean": float(self.mean),
            "variance": float(self.variance),
        }

    def restore(self, state: dict[str, float | list[float]]) -> None:
        """The inverse of `state`."""
        self.running = np.array(state["running"])
        self.count, self.mean, self.variance = state["count"], state["mean"], state["variance"]  # type: ignore[assignment]
