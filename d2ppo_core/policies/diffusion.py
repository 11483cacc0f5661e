"""The diffusion policy: noise prediction for pre-training, a chain of Gaussians for acting and PPO (DPPO Sec. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import PolicySpec
from ..diffusion.chain import DenoisingChain, gaussian_log_prob
from ..diffusion.guide import Guide
from ..diffusion.schedule import NoiseSchedule
from ..dispersive import DispersiveLoss
from ..network_specs import SamplerSpec
from ..networks.encoder import Network
from ..observation import Observation
from .base import Policy, PretrainLoss, Sample
from .fast import Predictor, noise_predictor


class DiffusionPolicy(Policy):
    """eps_theta and how it denoises. `base` takes the first S - K' denoising steps of a fine-tuned policy."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__(spec)
        self.schedule = NoiseSchedule(spec.sampler.train_steps)
        self.exploring = DenoisingChain(spec.sampler, explore=True)
        self.acting = DenoisingChain(spec.sampler, explore=False)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """The initial x and one z for each of the S steps, (S+1, H, Da)."""
        return (self.spec.sampler.steps + 1, *self.spec.chunk_shape)

    def set_sampler(self, sampler: SamplerSpec) -> None:
        """See `Policy.set_sampler`."""
        device = self.exploring.A.device
        self.spec = self.spec.model_copy(update={"sampler": sampler})
        self.exploring = DenoisingChain(sampler, explore=True).to(device)
        self.acting = DenoisingChain(sampler, explore=False).to(device)

    # --- pre-training ---------------------------------------------------------------------------------------------

    def training_noise(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """t (B,) long, the denoising step of each window, and epsilon (B, H, Da) standard normal."""
        t = torch.randint(self.schedule.K, (count,), generator=draw)
        return t, torch.randn((count, *self.spec.chunk_shape), generator=draw)

    def loss(
        self,
        observation: Observation,
        x0: Tensor,
        noise: tuple[Tensor, ...],
        dispersive: DispersiveLoss | None = None,
    ) -> PretrainLoss:
        """L_diff = E (eps_theta(x_t, t, s) - eps)^2, and the dispersive loss of the same forward pass (D2PPO Eq. 6)."""
        t, epsilon = noise
        code = self.encode(observation)
        predicted, features = self.network(self.schedule.add_noise(x0, t, epsilon), t, code)
        diffusion = (predicted - epsilon).square().mean()
        dispersion, pairs = diffusion.new_zeros(()), None
        if dispersive is not None and dispersive.active:
            taps = self.network.tap(dispersive.config.layer)
            if dispersive.every_step:
                dispersion = self._dispersion_over_steps(code, x0, epsilon, dispersive, taps)
            else:
                if dispersive.config.shared_step:  # every row at the step of the first, which is uniform, too
                    shared = dispersive.whole(t)[:1].expand_as(t)
                    features = self.network(self.schedule.add_noise(x0, shared, epsilon), shared, code)[1]
                pairs = dispersive.pairs_of(x0)
                dispersion = dispersive(features, taps, pairs)
        return PretrainLoss(diffusion, dispersion, features, pairs)

    def _dispersion_over_steps(
        self, code: Tensor, x0: Tensor, epsilon: Tensor, dispersive: DispersiveLoss, taps: tuple[str, ...]
    ) -> Tensor:
        """(1/K) sum_k L(H_k): features of the whole batch at each denoising step (D2PPO Eq. 7); K forward passes."""
        total = x0.new_zeros(())
        for k in range(self.schedule.K):
            t = torch.full((len(x0),), k, device=x0.device)
            total = total + dispersive(self.network(self.schedule.add_noise(x0, t, epsilon), t, code)[1], taps)
        return total / self.schedule.K

    # --- acting and fine-tuning -------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, observation: Observation, noise: Tensor, explore: bool, guide: Guide | None = None) -> Sample:
        """Denoise from x_0 = noise[:, 0]; step i adds sampling_std_i * clamp(noise[:, i+1], +-noise_clip)."""
        chain, clip = (self.exploring if explore else self.acting), self.spec.sampler.noise_clip
        added = noise[:, 1:].clamp(-clip, clip) * chain.sampling_std().view(-1, 1, 1)  # [B, S, H, Da] * [S, 1, 1]
        steps = zip(self._predictors(observation, chain), added.unbind(1), strict=True)
        x, results, means = noise[:, 0], [noise[:, 0]], []
        for i, (predict, z) in enumerate(steps):
            mean = chain.mean_at(x, predict(x, i), i, guide)
            x = mean + z
            means.append(mean)
            results.append(x)
        if guide is not None:
            x = results[-1] = guide.freeze(x)
        first = self.first_finetuned
        tuned = torch.stack(results[first:], 1)  # [B, K'+1, H, Da]
        log_prob = tuned[:, 1:]
        if first < chain.S:
            std = chain.logprob_std()[first:].view(-1, 1, 1)  # [K'] -> [K', 1, 1]
            log_prob = gaussian_log_prob(log_prob, torch.stack(means[first:], 1), std)
        return Sample(x, tuned, log_prob)

    def log_prob(self, code: Tensor, x: Tensor, x_next: Tensor, k: Tensor) -> Tensor:
        """See `Policy.log_prob` (DPPO Eq. 4.3). The mean uses sigma_i, the density max(sigma_i, min_logprob_std)."""
        chain, i = self.exploring, self.first_finetuned + k
        epsilon, _ = self.network(x, chain.t[i], code)
        std = chain.logprob_std()[i].view(-1, 1, 1)  # [B] -> [B, 1, 1]
        return gaussian_log_prob(x_next, chain.mean(x, epsilon, i), std)

    def entropy(self) -> Tensor:
        """The released code's stand-in: eta, a constant as long as it is not learned."""
        return torch.tensor(self.spec.sampler.eta)

    @property
    def first_finetuned(self) -> int:
        """S - K': index of the first denoising step that the fine-tuned network takes."""
        return self.spec.sampler.steps - self.spec.sampler.finetuned_steps

    def _predictors(self, observation: Observation, chain: DenoisingChain) -> list[Predictor]:
        """eps_theta of each of the S steps, for these observations; the frozen network takes those before S - K'."""
        seen, first = self.condition(observation), self.first_finetuned

        def predictor(network: Network) -> Predictor:
            return noise_predictor(network, chain.t, network.encode(*seen))

        if self.base is None or first == 0:
            return [predictor(self.network)] * chain.S
        return [predictor(self.base)] * first + [predictor(self.network)] * (chain.S - first)
