"""Policies that draw a chunk in one step, from a Gaussian or from a mixture of Gaussians (DPPO's baselines)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..contract import PolicySpec
from ..diffusion.chain import gaussian_log_prob
from ..diffusion.guide import Guide
from ..dispersive import DispersiveLoss
from ..errors import UserError
from ..network_specs import GaussianSpec
from ..networks.direct import learned_log_variance
from ..observation import Observation
from .base import Policy, PretrainLoss, Sample


class Bounded(torch.autograd.Function):
    """x clamped to [low, high]. Its gradient is kept where descending it leads back inside: a plain clamp has none
    outside, so that a standard deviation which once reached its bound would stay there for ever (as released)."""

    generate_vmap_rule = True  # several seeds are trained at once

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        kept = ((x > ctx.low) | (gradient < 0)) & ((x < ctx.high) | (gradient > 0))
        return gradient * kept, None, None


class GaussianPolicy(Policy):
    """N(mu_theta(s), std^2): one draw, so K' = 1. Acting without exploration it gives the mean."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec, spec.sampler.std if spec.sampler.learn_std else None)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One z, (1, H, Da)."""
        return (1, *self.spec.chunk_shape)

    def set_sampler(self, sampler: GaussianSpec) -> None:
        """See `Policy.set_sampler`. A standard deviation to be learned starts at `std`."""
        self.spec = self.spec.model_copy(update={"sampler": sampler})
        if not sampler.learn_std:
            self.network.log_variance = None
        elif self.network.log_variance is None:
            self.network.log_variance = learned_log_variance(sampler.std, *self._std_shape())
            self.network.to(self.normalizer.clip.device)

    def _std_shape(self) -> tuple[int, ...]:
        return (self.spec.action.size,)

    def std(self) -> Tensor:
        """Standard deviation of each number of a step, (Da,); a learned one inside [std_min, std_max]."""
        sampler, learned = self.spec.sampler, self.network.log_variance
        if learned is None:
            return torch.full(self._std_shape(), sampler.std, device=self.normalizer.clip.device)
        return Bounded.apply(learned, 2 * math.log(sampler.std_min), 2 * math.log(sampler.std_max)).div(2).exp()

    def training_noise(self, count: int, draw: torch.Generator) -> tuple[Tensor, ...]:
        """The loss draws nothing."""
        return ()

    def loss(
        self,
        observation: Observation,
        x0: Tensor,
        noise: tuple[Tensor, ...],
        dispersive: DispersiveLoss | None = None,
    ) -> PretrainLoss:
        """-E log N(x0; mu, std^2) for each number of a chunk, and the dispersive loss of the same forward pass."""
        out = self.network(self.encode(observation))
        features, dispersion, pairs = out[-1], x0.new_zeros(()), None
        if dispersive is not None and dispersive.active:
            pairs = dispersive.pairs_of(x0)
            dispersion = dispersive(features, self.network.tap(dispersive.config.layer), pairs)
        return PretrainLoss(-self._log_prob(out, x0).mean(), dispersion, features, pairs)

    def _log_prob(self, out: tuple, chunk: Tensor) -> Tensor:
        """(B, H, Da) of a network's output."""
        return gaussian_log_prob(chunk, out[0], self.std())

    @torch.no_grad()
    def sample(self, observation: Observation, noise: Tensor, explore: bool, guide: Guide | None = None) -> Sample:
        """mu + std * clamp(z, +-noise_clip); z only when exploring."""
        if guide is not None:
            raise UserError("rtc needs a diffusion policy, and this one draws a chunk at once; choose another mode")
        out = self.network(self.encode(observation))
        chunk = self._draw(out, noise, self.std() if explore else torch.zeros_like(self.std()))
        chain = torch.stack([torch.zeros_like(chunk), chunk], 1)  # before the draw there is nothing
        return Sample(chunk, chain, self._log_prob(out, chunk)[:, None])

    def _draw(self, out: tuple, noise: Tensor, std: Tensor) -> Tensor:
        """The chunk (B, H, Da) that the noise (B, *noise_shape) names."""
        clip = self.spec.sampler.noise_clip
        return out[0] + std * noise[:, 0].clamp(-clip, clip)

    def log_prob(self, code: Tensor, x: Tensor, x_next: Tensor, k: Tensor) -> Tensor:
        """See `Policy.log_prob`; there is nothing before the draw, and k is 0."""
        return self._log_prob(self.network(code), x_next)

    def entropy(self) -> Tensor:
        """Of one number of a chunk, averaged: log std + log(2 pi e) / 2."""
        return (self.std().log() + 0.5 * math.log(2 * math.pi * math.e)).mean()


class GMMPolicy(GaussianPolicy):
    """sum_m w_m(s) N(mu_m(s), std_m^2) over whole chunks. Acting without exploration it gives the drawn mode's mean."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The first number of row 0 chooses the mode, row 1 is z, (2, H, Da)."""
        return (2, *self.spec.chunk_shape)

    def _std_shape(self) -> tuple[int, ...]:
        return (self.spec.network.modes, self.spec.action.size)

    def _log_prob(self, out: tuple, chunk: Tensor) -> Tensor:
        """log p(a_d | a_1 .. a_{d-1}) of each number in turn, (B, H, Da): they add up to the chunk's log-density.

        The released code clamps the sum to [-5, 2] as if it were one number, which leaves PPO no gradient; number by
        number, the clamp and the mean over the executed steps mean what they mean for the other policies.
        """
        means, logits, _ = out
        each = gaussian_log_prob(chunk[:, None], means, self.std()[:, None])  # [B, M, H, Da]
        joint = logits.log_softmax(1)[..., None] + each.flatten(2).cumsum(2)  # log w_m + log p_m(a_1 .. a_d)
        so_far = joint.logsumexp(1)  # [B, M, H*Da] -> [B, H*Da]: log p(a_1 .. a_d)
        before = torch.cat([torch.zeros_like(so_far[:, :1]), so_far[:, :-1]], 1)
        return (so_far - before).view_as(chunk)  # [B, H*Da] -> [B, H, Da]

    def _draw(self, out: tuple, noise: Tensor, std: Tensor) -> Tensor:
        means, logits, _ = out
        clip, share = self.spec.sampler.noise_clip, torch.special.ndtr(noise[:, 0, 0, 0])  # uniform in (0, 1)
        mode = (logits.softmax(1).cumsum(1) < share[:, None]).sum(1).clamp(max=logits.shape[1] - 1)  # [B, M] -> [B]
        rows = torch.arange(len(mode), device=mode.device)
        return means[rows, mode] + std[mode][:, None] * noise[:, 1].clamp(-clip, clip)  # std [B, 1, Da]
