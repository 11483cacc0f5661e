"""Repelling only the pairs whose action chunks differ: two states that call for one action may stay close."""

from __future__ import annotations

import torch
from torch import Tensor

from .features import pair_distances

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge")  # the forms that are a mean over pairs


def differing_pairs(chunks: Tensor, quantile: float) -> Tensor:
    """(B, H, Da) -> (B, B) bool: i != j whose chunks lie farther apart than that quantile of the batch's pairs."""
    distances = pair_distances(chunks.flatten(1).float())
    others = ~torch.eye(len(chunks), dtype=torch.bool, device=chunks.device)
    return (distances > torch.quantile(distances[others], quantile)) & others


def loss_of_pairs(z: Tensor, keep: Tensor, variant: str, tau: float, margin: float) -> Tensor:
    """The scale-free InfoNCE or hinge, (B, D) -> scalar, as a mean over the pairs in `keep` (B, B) alone.

    0 where there is no such pair. The scale, the RMS, is the whole batch's, as without `keep`.
    """
    if not keep.any():
        return z.sum() * 0
    gram = z @ z.T
    norms = gram.diagonal()
    if variant == "infonce_cosine":
        inverse = norms.clamp(min=1e-24).rsqrt()
        return _log_mean_exp((gram * inverse[:, None] * inverse - 1)[keep] / tau)
    distances = (norms[:, None] + norms - 2 * gram)[keep] * (len(z) / norms.sum().clamp(min=1e-24))
    if variant == "infonce_l2":
        return _log_mean_exp(-distances / tau)
    return (margin - distances).clamp(min=0).square().mean()


def _log_mean_exp(values: Tensor) -> Tensor:
    return values.logsumexp(0) - torch.log(torch.tensor(float(len(values)), device=values.device))
