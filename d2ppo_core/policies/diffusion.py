"""The diffusion policy: noise prediction for pre-training, a chain of Gaussians for acting and PPO (DPPO Sec. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import PolicySpec
from ..diffusion.chain import DenoisingChain, gaussian_log_prob
from ..diffusion.schedule import NoiseSchedule
from ..dispersive import DispersiveLoss
from ..network_specs import SamplerSpec
from ..networks.encoder import Network
from ..observation import Observation
from .base import Policy, PretrainLoss, Sample


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
        dispersion = diffusion.new_zeros(())
        if dispersive is not None and dispersive.active:
            taps = self.network.tap(dispersive.config.layer)
            if dispersive.every_step:
                dispersion = self._dispersion_over_steps(code, x0, epsilon, dispersive, taps)
            else:
                dispersion = dispersive(features, taps)
        return PretrainLoss(diffusion, dispersion, features)

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
    def sample(self, observation: Observation, noise: Tensor, explore: bool) -> Sample:
        """Denoise from x_0 = noise[:, 0]; step i adds sampling_std_i * clamp(noise[:, i+1], +-noise_clip)."""
        chain, clip = (self.exploring if explore else self.acting), self.spec.sampler.noise_clip
        x, first, codes = noise[:, 0], self.first_finetuned, self._codes(observation)
        stds, logprob_stds = chain.sampling_std(), chain.logprob_std()
        results, log_probs = [x], []
        for i in range(chain.S):
            mean = self._mean(chain, x, codes, i)
            x = mean + stds[i] * noise[:, i + 1].clamp(-clip, clip)
            if i >= first:
                log_probs.append(gaussian_log_prob(x, mean, logprob_stds[i]))
                results.append(x)
            else:
                results = [x]
        log_prob = torch.stack(log_probs, 1) if log_probs else x.new_zeros(len(x), 0, *x.shape[1:])
        return Sample(x, torch.stack(results, 1), log_prob)

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

    def _codes(self, observation: Observation) -> dict[Network, Tensor]:
        """One code for each network that takes a step."""
        seen = self.condition(observation)
        networks = {self._network(i) for i in (0, self.spec.sampler.steps - 1)}
        return {network: network.encode(*seen) for network in networks}

    def _network(self, i: int) -> Network:
        """Who takes step i: the frozen network takes those before S - K'."""
        return self.base if self.base is not None and i < self.first_finetuned else self.network

    def _mean(self, chain: DenoisingChain, x: Tensor, codes: dict[Network, Tensor], i: int) -> Tensor:
        """Mean of step i, the same step for the whole batch."""
        network = self._network(i)
        epsilon, _ = network(x, chain.t[i].expand(len(x)), codes[network])
        return chain.mean(x, epsilon, chain.t.new_tensor(i))
