"""Importance sampling over denoising steps (D2PPO Eq. 14, 32, 34): a few steps of each chunk stand for all K'.

    sum_k f(k)  ~  sum_{k in S_K} f(k) / (|S_K| p(k)),     S_K: m steps drawn with replacement, step k with p(k)

f(k) is whatever belongs to fine-tuned step k of one chunk: grad log pi * A in Eq. 14, the clipped objective in Eq. 34.
Unbiased for every p that is nowhere 0; the closer p is to |f|, the less it varies. k = 0 is the noisiest step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError


def denoising_weights(K: int, discount: float) -> Tensor:
    """gamma_denoise^k of the K' fine-tuned steps, noisiest first, (K',): k = K'-1 ... 0 steps are left after it."""
    return discount ** torch.arange(K - 1, -1, -1).float()


@dataclass(frozen=True)
class StepSampler:
    """Draws m of the K' fine-tuned steps for each chunk, and says what each counts."""

    p: Tensor  # (K',) float64, adds up to 1
    m: int

    def draw(self, chunks: int, generator: torch.Generator) -> Tensor:
        """S_K of each chunk, (chunks, m) long on the CPU."""
        drawn = torch.multinomial(self.p, chunks * self.m, replacement=True, generator=generator)
        return drawn.view(chunks, self.m)

    def weight(self, k: Tensor) -> Tensor:
        """1 / (m p(k)) of each drawn step, the shape of k."""
        return 1 / (self.m * self.p.to(k.device)[k])

    def estimate(self, terms: Tensor, k: Tensor) -> Tensor:
        """sum_k f(k) of each chunk, estimated from f of its drawn steps: terms and k (chunks, m) -> (chunks,)."""
        return (terms * self.weight(k).to(terms.dtype)).sum(-1)


def step_sampler(steps: int, m: int, probability: str, discount: float) -> StepSampler:
    """The sampler that options describe.

    Args:
        steps: K'. m: steps drawn for each chunk.
        probability: "uniform"; "discount": as gamma_denoise^k, which scales the advantage; or K' numbers separated by
            spaces, noisiest step first, in any unit.
        discount: gamma_denoise.
    """
    if m < 1:
        raise UserError(f"algorithm.importance_steps is {m}; draw at least 1 denoising step for each chunk")
    weights = _weights(steps, probability, discount)
    return StepSampler(weights / weights.sum(), m)


def _weights(steps: int, probability: str, discount: float) -> Tensor:
    if probability == "uniform":
        return torch.ones(steps, dtype=torch.float64)
    if probability == "discount":
        weights = denoising_weights(steps, discount).double()
    else:
        try:
            weights = torch.tensor([float(number) for number in probability.split()], dtype=torch.float64)
        except ValueError:
            weights = torch.empty(0)
    if len(weights) != steps or not torch.isfinite(weights).all() or not (weights > 0).all():
        raise UserError(
            f"algorithm.importance_probability is '{probability}'; give uniform, discount (with a denoising_discount "
            f"above 0), or {steps} numbers above 0, one for each fine-tuned denoising step"
        )
    return weights
