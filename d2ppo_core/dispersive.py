"""Dispersive losses: repulsion between the features of a batch, without positives (Wang & He 2025; D2PPO Eq. 7-10).

Three readings of the same idea, chosen by `dispersive=`:

normalised  (default) scale-free: features are divided by the batch's RMS (gradient through it), squared distances are
            per dimension, pairs i = j are left out, log-mean-exp is a logsumexp. Bounded, and it has a gradient.
paper       Eq. 7-10 as printed: summed squared distance, i = j included, averaged over all K denoising steps.
release     as the D2PPO code computes it: like `paper`, at the one sampled denoising step. For the usual widths
            exp(-distance/tau) underflows and InfoNCE-L2 has no gradient at all; kept for reproduction.

z (B, D) are the features of a batch of B samples. Every form but one is a function of their Gram matrix G = z z^T
(B, B) alone, so a loss costs two matrix products of B * B * D: one for G, one for its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import differing
from .conf.schema import DispersiveConfig
from .errors import UserError
from .features import Dispersion, effective_rank, relative_distance, similarity

MODES = ("off", "normalised", "paper", "release")
VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")
LAYERS = ("early", "mid", "late", "all", "released_early", "released_mid", "released_late")
SATURATED = 1e-7  # gradient norm w.r.t. unit-RMS features below which the loss teaches nothing (float32 resolution)
TINY = 1e-24  # least mean square that is divided by
INFLATED = 5.0  # growth of the features' RMS over its first value that we warn of


class Gram(torch.autograd.Function):
    """G = z z^T, (B, D) -> (B, B). Its gradient is one matrix product: dL/dz = (dL/dG + dL/dG^T) z."""

    generate_vmap_rule = True  # several seeds are trained at once

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z @ z.T

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return (gradient + gradient.T) @ z


def squared_distances(z: Tensor) -> Tensor:
    """||z_i - z_j||^2 for every pair, (B, D) -> (B, B), through the Gram matrix: no (B, B, D) tensor."""
    gram = Gram.apply(z)
    norms = gram.diagonal()
    return torch.sub(norms[:, None] + norms, gram, alpha=2)


def cosine_similarities(z: Tensor) -> Tensor:
    """z_i . z_j / (||z_i|| ||z_j||) for every pair, (B, D) -> (B, B)."""
    gram = Gram.apply(z)
    inverse = gram.diagonal().clamp(min=TINY).rsqrt()
    return gram * inverse[:, None] * inverse


def log_mean_exp(values: Tensor) -> Tensor:
    """log( mean_n exp(values_n) ), without overflow or underflow (torch.logsumexp takes ten times as long)."""
    largest = values.detach().max()
    return (values - largest).exp().mean().log() + largest


def infonce(A: Tensor) -> tuple[Tensor, Tensor]:
    """log E_{i!=j} exp(A_ij) and its gradient, the softmax weights of the pairs (D2PPO Eq. 22). Consumes A (B, B)."""
    A.diagonal().fill_(-math.inf)
    largest = A.max()
    weights = A.sub_(largest).exp_()
    total = weights.sum()
    return total.log() + (largest - math.log(len(A) * (len(A) - 1))), weights.div_(total)


def l2_of_gram(G: Tensor, variant: str, tau: float, margin: float) -> tuple[Tensor, Tensor]:
    """InfoNCE or hinge of D_ij = ||u_i - u_j||^2 / D, u = z / rms(z), and its gradient by G = z z^T, both (B, B).

    The mean square of z is trace(G) / (B D), so with n_i = G_ii and c = B / trace(G): D_ij = c (n_i + n_j - 2 G_ij).
    With P = dL/dD, symmetric: dL/dG_ij = -2 c P_ij, and dL/dG_ii = 2 c sum_j P_ij - sum(P D) / trace(G).
    """
    B, n = len(G), G.diagonal()
    c = B / n.sum().clamp(min=TINY * B)
    D = torch.sub(n[:, None] + n, G, alpha=2).mul_(c)
    if variant == "infonce_l2":  # log E_{i!=j} exp(-D_ij / tau)
        loss, P = infonce(D / -tau)
        P.div_(-tau)
    else:  # hinge: E_{i!=j} max(0, margin - D_ij)^2
        gap = (margin - D).clamp(min=0)
        gap.diagonal().fill_(0)
        loss, P = gap.square().sum() / (B * (B - 1)), gap * (-2 / (B * (B - 1)))
    diagonal = 2 * c * P.sum(1) - c / B * (P * D).sum()
    gradient = P.mul_(-2 * c)
    gradient.diagonal().copy_(diagonal)
    return loss, gradient


def cosine_of_gram(G: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """log E_{i!=j} exp(-(1 - cos_ij) / tau), and its gradient by G = z z^T, both (B, B).

    cos_ij = G_ij / sqrt(n_i n_j), n_i = G_ii. With P = dL/dcos, symmetric: dL/dG_ij = P_ij / sqrt(n_i n_j), and
    dL/dG_ii = -sum_j P_ij cos_ij / n_i.
    """
    inverse = G.diagonal().clamp(min=TINY).rsqrt()
    cosine = G * inverse[:, None] * inverse
    loss, P = infonce((cosine - 1) / tau)
    P.div_(tau)
    diagonal = -(P * cosine).sum(1) * inverse.square()
    gradient = P.mul_(inverse[:, None]).mul_(inverse)
    gradient.diagonal().copy_(diagonal)
    return loss, gradient


class SquaredCorrelations(torch.autograd.Function):
    """sum_{a!=b} Corr_ab^2 of the D features over the batch, (B, D) -> scalar, with its gradient written out.

    With S (B, D) the features standardised one by one (r_a = 1 / standard deviation), ||S^T S||^2 = ||S S^T||^2: the
    smaller of both is formed. dL/dS = 4 T / B^2, T = S S^T S - S diag(n), n_a = sum_b S_ba^2. Standardising takes off
    each feature's part along itself, dL/dz_a = 4 r_a (T_a - S_a (T_a . S_a) / B) / B^2; the mean of that is 0 already.
    """

    generate_vmap_rule = True  # several seeds are trained at once

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, ...]:
        centred, (B, D) = z - z.mean(0), z.shape
        variance = centred.square().mean(0)
        r = (variance + 1e-6 * variance.mean()).clamp(min=TINY).rsqrt()
        S, n = centred * r, B * variance * r.square()
        gram = S.T @ S if D < B else S @ S.T
        return (gram.square().sum() - n.square().sum()) / B**2, S, gram, r, n

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor, *_: Tensor) -> Tensor:
        S, gram, r, n = ctx.saved_tensors
        B, D = S.shape
        T = (S @ gram if D < B else gram @ S) - S * n
        return (T - S * ((T * S).sum(0) / B)) * (r * (4 * gradient / B**2))


class PairLoss(torch.autograd.Function):
    """A loss of the pairs (i, j), i != j, with the gradient by the Gram matrix written out: dL/dz = 2 dL/dG z.

    So it costs two matrix products and little else, however few rows there are.
    """

    generate_vmap_rule = True  # several seeds are trained at once

    @staticmethod
    def forward(z: Tensor, variant: str, tau: float, margin: float) -> tuple[Tensor, Tensor]:
        G = z @ z.T
        return cosine_of_gram(G, tau) if variant == "infonce_cosine" else l2_of_gram(G, variant, tau, margin)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        z, by_gram = ctx.saved_tensors
        return (2 * gradient * by_gram) @ z, None, None, None


def normalised_loss(z: Tensor, variant: str, tau: float, margin: float) -> Tensor:
    """The scale-free form of each variant."""
    if variant == "covariance":  # sum_{a!=b} Corr_ab^2 / D
        return SquaredCorrelations.apply(z)[0] / z.shape[1]
    return PairLoss.apply(z, variant, tau, margin)[0]


def released_loss(z: Tensor, variant: str, tau: float) -> Tensor:
    """The released formulas, i = j included; `margin` is 1 and tau is unused where the code does so."""
    if variant == "infonce_l2":
        return log_mean_exp(squared_distances(z) / -tau)
    if variant == "infonce_cosine":  # log E exp(+cos / tau)
        return log_mean_exp(cosine_similarities(z) / tau)
    if variant == "hinge":
        return (1.0 - squared_distances(z)).clamp(min=0).square().mean()
    centred = z - z.mean(0)  # covariance: sum_{ab} Cov_ab^2, with the diagonal: it shrinks the features
    return (centred.T @ centred / (z.shape[0] - 1)).square().sum()


def paper_loss(z: Tensor, variant: str, tau: float, margin: float) -> Tensor:
    """Eq. 8-10 of the D2PPO paper at one denoising step, all pairs included (the paper has no covariance variant)."""
    if variant == "infonce_l2":
        return log_mean_exp(squared_distances(z) / -tau)
    if variant == "infonce_cosine":  # D = 1 - cos
        return log_mean_exp((cosine_similarities(z) - 1) / tau)
    return (margin - squared_distances(z)).clamp(min=0).square().mean()


class DispersiveLoss:
    """One configured dispersive loss. Stateless but for the first RMS seen, which tells inflation."""

    def __init__(self, config: DispersiveConfig) -> None:
        for value, allowed, name in (
            (config.mode, MODES, "mode"),
            (config.variant, VARIANTS, "variant"),
            (config.layer, LAYERS, "layer"),
        ):
            if value not in allowed:
                raise UserError(f"dispersive.{name} is '{value}'; choose one of {', '.join(allowed)}")
        if config.mode == "paper" and config.variant == "covariance":
            raise UserError(
                "the paper has no covariance variant; choose dispersive=normalised or dispersive=release for it"
            )
        if config.temperature <= 0:
            raise UserError(f"dispersive.temperature is {config.temperature}; it must be above 0 (both papers use 0.5)")
        if config.pairs < 0 or config.pairs == 1:
            raise UserError(f"dispersive.pairs is {config.pairs}; give 0 (all pairs of the batch), or at least 2 rows")
        if config.weight < 0:
            raise UserError(f"dispersive.weight is {config.weight}; it must be at least 0: below, it would attract")
        self._check_study_options(config)
        self.config = config
        self.first_rms: float | None = None
        self.whole: Callable[[Tensor], Tensor] = lambda rows: rows  # of a process's share (`distributed`), the whole

    @staticmethod
    def _check_study_options(config: DispersiveConfig) -> None:
        if config.mode == "off":
            return
        if not 0 <= config.differ < 1:
            raise UserError(f"dispersive.differ is {config.differ}; give a quantile: 0 (all pairs) or less than 1")
        if config.differ and (config.mode != "normalised" or config.variant not in differing.VARIANTS):
            forms = ", ".join(differing.VARIANTS)
            raise UserError(f"dispersive.differ needs dispersive=normalised and a variant of pairs ({forms})")
        if config.shared_step and config.mode == "paper":
            raise UserError("dispersive=paper takes each denoising step in turn; leave dispersive.shared_step out")

    def weight_at(self, step: int, steps: int) -> float:
        """lambda of gradient step `step` of `steps`: constant, or falling linearly to 0."""
        return self.config.weight * (1 - step / steps if self.config.anneal else 1.0)

    @property
    def active(self) -> bool:
        """Whether the loss is computed at all."""
        return self.config.mode != "off" and self.config.weight != 0

    @property
    def every_step(self) -> bool:
        """Whether it is averaged over all K denoising steps (Eq. 7), each a forward pass of its own."""
        return self.config.mode == "paper"

    def pairs_of(self, chunks: Tensor) -> Tensor | None:
        """The pairs that are repelled, (B, B) bool, given the action chunks (B, H, Da); None: all."""
        if not self.config.differ:
            return None
        return differing.differing_pairs(self._rows(self.whole(chunks)), self.config.differ)

    def of_feature(self, z: Tensor, pairs: Tensor | None = None) -> Tensor:
        """The loss of one feature tensor, (B, ...) flattened for each sample; 0 for a batch of one, or when off."""
        z, c = self._rows(z).flatten(1), self.config  # [B, ...] -> [B, D]
        if z.shape[0] < 2 or c.mode == "off":
            return z.sum() * 0
        if pairs is not None:
            return differing.loss_of_pairs(z, pairs, c.variant, c.temperature, c.margin)
        if c.mode == "normalised":
            return normalised_loss(z, c.variant, c.temperature, c.margin)
        if c.mode == "paper":
            return paper_loss(z, c.variant, c.temperature, c.margin)
        return released_loss(z, c.variant, c.temperature)

    def _rows(self, z: Tensor) -> Tensor:
        """The first `pairs` rows of the batch, or all of it.

        A batch is shuffled, so its first n rows are a uniform random subset: a mean over their pairs is an unbiased
        estimate of the mean over all pairs (of InfoNCE the mean inside the logarithm; the scale is the subset's own).
        """
        return z[: self.config.pairs] if self.config.pairs else z

    def __call__(self, features: dict[str, Tensor], taps: tuple[str, ...], pairs: Tensor | None = None) -> Tensor:
        """Mean of the loss over the tapped features, in float32 whatever the network computes in."""
        with torch.autocast(features[taps[0]].device.type, enabled=False):
            return sum(self.of_feature(self.whole(features[tap].float()), pairs) for tap in taps) / len(taps)

    def diagnose(
        self, features: dict[str, Tensor], taps: tuple[str, ...], pairs: Tensor | None = None
    ) -> Dispersion:
        """Loss and statistics of the first tap, from detached features. For logging steps only."""
        with torch.enable_grad():
            z = self.whole(features[taps[0]].detach().float()).flatten(1).requires_grad_()  # [B, ...] -> [B, D]
            loss = self.of_feature(z, pairs)
            (gradient,) = torch.autograd.grad(loss, z)
        rms = z.detach().square().mean().sqrt().item()
        z = z.detach()
        return Dispersion(
            loss.detach(), gradient.norm().item() * rms, relative_distance(z), effective_rank(z), similarity(z), rms
        )

    def warning(self, dispersion: Dispersion) -> str | None:
        """One sentence when the loss has no gradient, or when it only inflates the features."""
        if self.first_rms is None:
            self.first_rms = dispersion.rms
        name = f"dispersive={self.config.mode} {self.config.variant} at {self.config.layer}"
        if dispersion.gradient_norm < SATURATED:
            return f"{name} is saturated: its gradient is zero, so it teaches nothing; use dispersive=normalised"
        if dispersion.rms > INFLATED * self.first_rms:
            growth = dispersion.rms / self.first_rms
            return f"{name} inflates the features ({growth:.0f} times their first scale); use dispersive=normalised"
        return None
