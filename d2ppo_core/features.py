"""Statistics of a batch of features (B, D), each relative to the features' scale: do they spread, and how far?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def pair_distances(z: Tensor) -> Tensor:
    """||z_i - z_j||^2 for every pair, (B, D) -> (B, B), never below 0."""
    norms = z.square().sum(1)
    return (norms[:, None] + norms - 2 * (z @ z.T)).clamp(min=0)


def relative_distance(z: Tensor) -> float:
    """Mean distance of two different samples divided by sqrt(D) * RMS: sqrt(2) for independent centred features."""
    if z.shape[0] < 2:
        return 0.0
    distances = pair_distances(z).sqrt().fill_diagonal_(0).sum() / (len(z) * (len(z) - 1))
    return (distances / (z.square().mean() * z.shape[1]).sqrt().clamp(min=1e-12)).item()


def effective_rank(z: Tensor) -> float:
    """exp(entropy of sigma / sum(sigma)), sigma the singular values of the centred features (Roy & Vetterli 2007)."""
    if not z.isfinite().all():  # of a diverged run: there are no singular values
        return math.nan
    sigma = torch.linalg.svdvals(z - z.mean(0))
    p = sigma / sigma.sum().clamp(min=1e-12)
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum()).item()


def similarity(z: Tensor) -> float:
    """Mean cosine of two different samples' features: 1 where all point the same way, about 0 where they are spread."""
    if z.shape[0] < 2:
        return 1.0
    unit = z / z.norm(dim=1, keepdim=True).clamp(min=1e-12)
    count = len(z)  # the sum over all pairs is the squared norm of the sum
    return ((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1))).item()


def statistics(z: Tensor, prefix: str) -> dict[str, float]:
    """For the log: `prefix`/effective_rank, /relative_distance, /similarity of the features (B, ...)."""
    z = z.detach().flatten(1).float()
    return {
        f"{prefix}/effective_rank": effective_rank(z),
        f"{prefix}/relative_distance": relative_distance(z),
        f"{prefix}/similarity": similarity(z),
    }


@dataclass(frozen=True)
class Dispersion:
    """The loss of one batch and what it did. All scalars."""

    loss: Tensor
    gradient_norm: float  # of the loss w.r.t. unit-RMS features
    relative_distance: float  # mean pair distance over the features' scale, sqrt(D) * RMS
    effective_rank: float  # exp(entropy of the normalised singular values of the centred features)
    similarity: float  # mean cosine of two different samples' features
    rms: float

    def metrics(self) -> dict[str, float]:
        """For the log; always written, whatever the sign of the loss."""
        return {
            "dispersive/loss": self.loss.item(),
            "dispersive/gradient_norm": self.gradient_norm,
            "dispersive/relative_distance": self.relative_distance,
            "dispersive/effective_rank": self.effective_rank,
            "dispersive/similarity": self.similarity,
            "dispersive/feature_rms": self.rms,
        }
