"""What every policy offers to pre-training, fine-tuning and acting: `loss`, `sample` and `log_prob`.

A chunk is the result of S steps, each a Gaussian or a mixture with a log-probability; a fine-tuned policy trains the
last K' of them (a diffusion policy: denoising steps; Gaussian and mixture policies: the one draw there is). PPO knows
only this. Everything random comes in as standard normal noise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contract import PolicySpec
from ..diffusion.guide import Guide
from ..dispersive import DispersiveLoss
from ..networks.build import build_network
from ..networks.encoder import Network
from ..normalizer import Normalizer
from ..observation import Observation


@dataclass(frozen=True)
class PretrainLoss:
    """Terms of one batch, and the tapped features for the log."""

    imitation: Tensor  # of the expert's chunks: noise prediction, or negative log-likelihood
    dispersive: Tensor
    features: dict[str, Tensor]
    pairs: Tensor | None = None  # (B, B) bool: which pairs the dispersive loss repels; None: all


@dataclass(frozen=True)
class Sample:
    """Chunks of B observations, in model units."""

    chunk: Tensor  # (B, H, Da): the result
    chain: Tensor  # (B, K'+1, H, Da): the input of the first fine-tuned step and every later result
    log_prob: Tensor  # (B, K', H, Da): of each fine-tuned step, number by number


class Policy(nn.Module):
    """A network, its normaliser, and how a chunk comes out of it.

    `network` is trained and acts. `base`, where there is one, is the frozen pre-trained copy.
    """

    network: Network
    base: Network | None
    normalizer: Normalizer

    def __init__(self, spec: PolicySpec, learn_std: float | None = None) -> None:
        super().__init__()
        self.spec = spec
        seen = spec.observation
        self.network = build_network(
            spec.network, spec.chunk_shape, seen.history * seen.state_size, seen.cameras, seen.history, learn_std
        )
        self.base = None
        self.normalizer = Normalizer(seen.state_size, spec.action.size)

    # --- observations ---------------------------------------------------------------------------------------------

    def condition(self, observation: Observation) -> tuple[Tensor, Tensor | None]:
        """State normalised, (B, To, Do) -> (B, To*Do), and images: what networks and critics look at."""
        return self.normalizer.normalize_state(observation.state).flatten(1), observation.images

    def encode(self, observation: Observation) -> Tensor:
        """The trained network's code of B observations, (B, C)."""
        return self.network.encode(*self.condition(observation))

    # --- the interface --------------------------------------------------------------------------------------------

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Standard normal noise that one chunk consumes."""
        raise NotImplementedError

    def training_noise(self, count: int, draw: torch.Generator) -> tuple[Tensor, ...]:
        """Everything random in `loss` of `count` windows, drawn on the CPU."""
        raise NotImplementedError

    def loss(
        self,
        observation: Observation,
        x0: Tensor,
        noise: tuple[Tensor, ...],
        dispersive: DispersiveLoss | None = None,
    ) -> PretrainLoss:
        """Imitation of expert chunks x0 (B, H, Da), model units, and the dispersive loss of the same forward pass."""
        raise NotImplementedError

    def sample(self, observation: Observation, noise: Tensor, explore: bool, guide: Guide | None = None) -> Sample:
        """Chunks from noise (B, *noise_shape); `explore` with the exploration noise of training.

        Only a policy that denoises takes a `guide`; `chain` and `log_prob` are then of the guided steps.
        """
        raise NotImplementedError

    def log_prob(self, code: Tensor, x: Tensor, x_next: Tensor, k: Tensor) -> Tensor:
        """log pi_theta(x_next | x, s) of single fine-tuned steps k = 0 .. K'-1 (B,), number by number, (B, H, Da).

        `code` (B, C) is `encode` of the observations; x, x_next (B, H, Da) the chunk before and after the step.
        """
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """What the entropy bonus rewards, a scalar."""
        raise NotImplementedError

    def set_sampler(self, sampler: Any) -> None:
        """Draw chunks differently from now on; the weights stay."""
        raise NotImplementedError

    # --- the frozen copy ------------------------------------------------------------------------------------------

    def freeze_base(self) -> None:
        """Keep a frozen copy of the network as it is now: the policy from which fine-tuning starts."""
        self.base = copy.deepcopy(self.network).requires_grad_(False)

    @torch.no_grad()
    def sample_base(self, observation: Observation, noise: Tensor) -> Tensor:
        """Chains (B, K'+1, H, Da) of the frozen pre-trained policy, with the exploration noise of training."""
        trained, self.network = self.network, self.base  # type: ignore[assignment]
        try:
            return self.sample(observation, noise, explore=True).chain
        finally:
            self.network = trained
