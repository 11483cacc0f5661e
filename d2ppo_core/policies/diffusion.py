"""The diffusion policy: noise prediction for pre-training, a chain of Gaussians for acting and PPO (DPPO Sec. 4)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contract import ObservationSpec, PolicySpec
from ..diffusion.chain import DenoisingChain, gaussian_log_prob
from ..diffusion.schedule import NoiseSchedule
from ..dispersive import DispersiveLoss
from ..errors import UserError
from ..network_specs import MLPSpec, SamplerSpec
from ..networks.mlp import DiffusionMLP
from ..normalizer import Normalizer


@dataclass(frozen=True)
class PretrainLoss:
    """Terms of one batch, and the tapped features for the log."""

    diffusion: Tensor
    dispersive: Tensor
    features: dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """Chunks of B states, in model units."""

    chunk: Tensor  # (B, H, Da): x_S, the result
    chain: Tensor  # (B, K'+1, H, Da): the input of the first fine-tuned step and every later result
    log_prob: Tensor  # (B, K', H, Da): of each fine-tuned step, number by number


def require_eyes(observation: ObservationSpec, network: MLPSpec) -> None:
    """Refuse cameras for a network that would silently leave them out."""
    if observation.cameras:
        names = ", ".join(camera.name for camera in observation.cameras)
        raise UserError(
            f"the network {network.kind} sees no images, but the task has cameras ({names}); choose a task "
            "without cameras"
        )


class DiffusionPolicy(nn.Module):
    """eps_theta, its normaliser, and how it denoises.

    `network` is trained and acts. `base`, where there is one, is the frozen pre-trained copy that takes the first
    S - K' denoising steps of a fine-tuned policy.
    """

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.spec = spec
        require_eyes(spec.observation, spec.network)
        state_size = spec.observation.history * spec.observation.state_size  # To * Do
        self.network = DiffusionMLP(spec.network, spec.chunk_shape, state_size)
        self.base: DiffusionMLP | None = None
        self.normalizer = Normalizer(spec.observation.state_size, spec.action.size)
        self.schedule = NoiseSchedule(spec.sampler.train_steps)
        self.exploring = DenoisingChain(spec.sampler, explore=True)
        self.acting = DenoisingChain(spec.sampler, explore=False)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Noise that one chunk consumes: the initial x and one z for each of the S steps, (S+1, H, Da)."""
        return (self.spec.sampler.steps + 1, *self.spec.chunk_shape)

    def freeze_base(self) -> None:
        """Keep a frozen copy of the network as it is now: the policy from which fine-tuning starts."""
        self.base = copy.deepcopy(self.network).requires_grad_(False)

    def set_sampler(self, sampler: SamplerSpec) -> None:
        """Denoise differently from now on; the weights stay."""
        device = self.exploring.A.device
        self.spec = self.spec.model_copy(update={"sampler": sampler})
        self.exploring = DenoisingChain(sampler, explore=True).to(device)
        self.acting = DenoisingChain(sampler, explore=False).to(device)

    def condition(self, state: Tensor) -> Tensor:
        """States (B, To, Do) in SI units -> what the network sees, (B, To*Do)."""
        return self.normalizer.normalize_state(state).flatten(1)  # [B, To, Do] -> [B, To*Do]

    def encode(self, state: Tensor) -> Tensor:
        """States (B, To, Do) in SI units -> the network's code of them, (B, C)."""
        return self.network.encode(self.condition(state))

    # --- pre-training ---------------------------------------------------------------------------------------------

    def loss(
        self, state: Tensor, x0: Tensor, t: Tensor, epsilon: Tensor, dispersive: DispersiveLoss | None = None
    ) -> PretrainLoss:
        """L_diff = E (eps_theta(x_t, t, s) - eps)^2, and the dispersive loss of the same forward pass (D2PPO Eq. 6).

        Args:
            state: (B, To, Do) SI units. x0: (B, H, Da) expert chunks, model units.
            t: (B,) long, the denoising step of each sample. epsilon: (B, H, Da) standard normal.
        """
        code = self.encode(state)
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
    def sample(self, state: Tensor, noise: Tensor, explore: bool) -> Sample:
        """Denoise from x_0 = noise[:, 0]; step i adds sampling_std_i * clamp(noise[:, i+1], +-noise_clip).

        Args:
            state: (B, To, Do) SI units. noise: (B, S+1, H, Da) standard normal; everything random comes in here.
            explore: with the exploration noise of training.
        """
        chain, clip = (self.exploring if explore else self.acting), self.spec.sampler.noise_clip
        state, x, first = self.condition(state), noise[:, 0], self.first_finetuned
        codes = {network: network.encode(state) for network in {self.network, self.base or self.network}}
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

    def log_prob(self, state: Tensor, x: Tensor, x_next: Tensor, step: Tensor) -> Tensor:
        """log pi_theta(x_next | x, s) of single denoising steps, number by number (DPPO Eq. 4.3).

        Args:
            state: (B, To, Do). x, x_next: (B, H, Da), the action before and after the step.
            step: (B,) long, index i of the step among the S.

        Returns:
            (B, H, Da). The mean uses sigma_i, the density max(sigma_i, min_logprob_std).
        """
        chain = self.exploring
        epsilon, _ = self.network(x, chain.t[step], self.encode(state))
        return gaussian_log_prob(x_next, chain.mean(x, epsilon, step), chain.logprob_std()[step])

    @torch.no_grad()
    def sample_base(self, state: Tensor, noise: Tensor) -> Tensor:
        """Chains (B, K'+1, H, Da) of the frozen pre-trained policy, with the exploration noise of training."""
        trained, self.network = self.network, self.base  # type: ignore[assignment]
        try:
            return self.sample(state, noise, explore=True).chain
        finally:
            self.network = trained

    @property
    def first_finetuned(self) -> int:
        """S - K': index of the first denoising step that the fine-tuned network takes."""
        return self.spec.sampler.steps - self.spec.sampler.finetuned_steps

    def _mean(self, chain: DenoisingChain, x: Tensor, codes: dict[DiffusionMLP, Tensor], i: int) -> Tensor:
        """Mean of step i, the same step for the whole batch; the frozen network takes the steps before S - K'."""
        network = self.base if self.base is not None and i < self.first_finetuned else self.network
        epsilon, _ = network(x, chain.t[i].expand(len(x)), codes[network])
        return chain.mean(x, epsilon, chain.t.new_tensor(i))
