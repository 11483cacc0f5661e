"""The reverse process: S denoising steps, each a Gaussian whose mean is linear in (clean estimate, noisy action).

DDPM and DDIM differ only in three numbers for each step. With i = 0 the first (noisiest) step and i = S-1 the last,

    x0_hat = clamp(x_t / sqrt(alpha_bar_t) - sqrt(1/alpha_bar_t - 1) eps_theta(x_t, t, s), +-sample_clip)
    mean_i = A_i x0_hat + B_i x_t,      x_{i+1} ~ N(mean_i, sigma_i^2)

DDPM (Ho et al. 2020, Eq. 7), t_i = K-1-i:
    A = beta_t sqrt(alpha_bar_{t-1}) / (1 - alpha_bar_t),  B = (1 - alpha_bar_{t-1}) sqrt(alpha_t) / (1 - alpha_bar_t)
    sigma^2 = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)
DDIM (Song et al. 2021, Eq. 12), t_i = (S-1-i) K/S, eps recomputed from the clamped x0_hat,
d = sqrt(1 - abar_prev - sigma^2):
    A = sqrt(abar_prev) - d sqrt(abar_t) / sqrt(1 - abar_t),  B = d / sqrt(1 - abar_t)
    sigma = eta sqrt((1 - abar_prev) / (1 - abar_t) (1 - abar_t / abar_prev))
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..network_specs import SamplerSpec
from .guide import Guide
from .schedule import cosine_betas

PLAIN_STD_FLOOR = 1e-3  # of DDPM's middle steps when acting without exploration noise (as released)


def ddpm_table(K: int) -> tuple[np.ndarray, ...]:
    """(t, A, B, sigma), each (K,), noisiest step first; float64."""
    beta = cosine_betas(K)
    alpha_bar = np.cumprod(1 - beta)
    before = np.concatenate([[1.0], alpha_bar[:-1]])  # alpha_bar_{t-1}
    A = beta * np.sqrt(before) / (1 - alpha_bar)
    B = (1 - before) * np.sqrt(1 - beta) / (1 - alpha_bar)
    sigma = np.sqrt(beta * (1 - before) / (1 - alpha_bar))
    return tuple(column[::-1].copy() for column in (np.arange(K), A, B, sigma))


def ddim_table(K: int, S: int, eta: float) -> tuple[np.ndarray, ...]:
    """(t, A, B, sigma), each (S,), noisiest step first; float64. `eta` 1 is as noisy as DDPM, 0 deterministic."""
    t = np.arange(S) * (K // S)  # "leading" spacing: t = 0 is always one of them
    alpha_bar = np.cumprod(1 - cosine_betas(K))[t]
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    sigma = eta * np.sqrt((1 - before) / (1 - alpha_bar) * (1 - alpha_bar / before))
    direction = np.sqrt(np.maximum(0, 1 - before - sigma**2))
    B = direction / np.sqrt(1 - alpha_bar)
    A = np.sqrt(before) - B * np.sqrt(alpha_bar)
    return tuple(column[::-1].copy() for column in (t, A, B, sigma))


class DenoisingChain(nn.Module):
    """The S steps of one sampler as tables indexed by i = 0 (noisiest) ... S-1 (last)."""

    t: Tensor
    A: Tensor
    B: Tensor
    sigma: Tensor
    recip: Tensor
    recip_noise: Tensor

    def __init__(self, spec: SamplerSpec, explore: bool) -> None:
        """`explore`: with the noise of training (DDIM's eta), else as the policy is evaluated (DDIM's eta 0)."""
        super().__init__()
        self.spec, self.explore, self.S, self.clip = spec, explore, spec.steps, spec.sample_clip
        K = spec.train_steps
        table = ddpm_table(K) if spec.kind == "ddpm" else ddim_table(K, spec.steps, spec.eta if explore else 0.0)
        alpha_bar = np.cumprod(1 - cosine_betas(K))[table[0]]
        columns = (*table, 1 / np.sqrt(alpha_bar), np.sqrt(1 / alpha_bar - 1))
        for name, column in zip(("t", "A", "B", "sigma", "recip", "recip_noise"), columns, strict=True):
            dtype = torch.long if name == "t" else torch.float32
            self.register_buffer(name, torch.tensor(column, dtype=dtype), persistent=False)
        A, B, r, r_noise = (c.double() for c in (self.A, self.B, self.recip, self.recip_noise))
        self.factors = torch.stack([r_noise / r, self.clip / r, B, A * r], 1).tolist()  # of `mean_at`, at each step

    def mean(self, x: Tensor, epsilon: Tensor, i: Tensor) -> Tensor:
        """mean_i of the next action. x, epsilon (B, H, Da); i (B,) long; returns (B, H, Da)."""
        A, B, recip, recip_noise = (c[i].view(-1, 1, 1) for c in (self.A, self.B, self.recip, self.recip_noise))
        x0_hat = (recip * x - recip_noise * epsilon).clamp(-self.clip, self.clip)
        return A * x0_hat + B * x

    def mean_at(self, x: Tensor, epsilon: Tensor, i: int, guide: Guide | None = None) -> Tensor:
        """`mean` where the whole batch is at step i, in the fewest operations: at batch 1 each counts.

        With r = 1 / sqrt(alpha_bar), x0_hat = r clamp(x - sqrt(1 - alpha_bar) eps, +-clip / r). A guide changes x0_hat.
        """
        noise, clip, B, A_r = self.factors[i]
        scaled = torch.sub(x, epsilon, alpha=noise).clamp_(-clip, clip)  # x0_hat / r
        if guide is not None:
            scaled = guide.mixed(scaled, clip / self.clip, noise * noise)
        return torch.add(x * B, scaled, alpha=A_r)

    def sampling_std(self) -> Tensor:
        """Standard deviation of the noise really added at each step, (S,).

        Exploring: max(sigma_i, min_sampling_std), the last step included (DPPO Sec. 4.3). Acting: DDPM keeps its
        middle steps' noise (floored at 1e-3) and none at the last; DDIM has none.
        """
        if self.explore:
            return self.sigma.clamp(min=self.spec.min_sampling_std)
        if self.spec.kind == "ddim":
            return torch.zeros_like(self.sigma)
        std = self.sigma.clamp(min=PLAIN_STD_FLOOR)
        std[-1] = 0.0
        return std

    def logprob_std(self) -> Tensor:
        """Standard deviation used in log-probabilities, (S,): max(sigma_i, min_logprob_std)."""
        return self.sigma.clamp(min=self.spec.min_logprob_std)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2), element by element, (..., H, Da); the shape of `std` is broadcast against theirs."""
    return -0.5 * ((x - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
