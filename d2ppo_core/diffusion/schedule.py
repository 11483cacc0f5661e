"""The forward process: how noise is added (Nichol & Dhariwal 2021; ALGORITHM of DPPO's pre-training)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


def cosine_betas(K: int, s: float = 0.008) -> np.ndarray:
    """Variances beta_0 ... beta_{K-1} of the cosine schedule, float64 (K,).

    alpha_bar(u) = cos^2((u + s) / (1 + s) * pi / 2);  beta_i = min(1 - alpha_bar((i+1)/K) / alpha_bar(i/K), 0.999)
    """
    u = np.arange(K + 1) / K
    alpha_bar = np.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)


class NoiseSchedule(nn.Module):
    """alpha_bar_t for t = 0 (almost clean) ... K-1 (almost pure noise)."""

    alpha_bar: Tensor

    def __init__(self, K: int) -> None:
        super().__init__()
        self.K = K
        self.register_buffer(
            "alpha_bar", torch.tensor(np.cumprod(1 - cosine_betas(K)), dtype=torch.float32), persistent=False
        )

    def add_noise(self, x0: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """q(x_t | x_0): sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon.  x0, epsilon (B, H, Da); t (B,)."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1)  # [B] -> [B, 1, 1]
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * epsilon
