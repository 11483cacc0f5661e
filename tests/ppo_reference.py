"""A tiny PPO problem, and its losses read from the DPPO paper in float64 NumPy, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from d2ppo_core.conf.schema import AlgorithmConfig
from d2ppo_core.network_specs import GaussianSpec, SamplerSpec
from d2ppo_core.networks.critics import StateCritic
from d2ppo_core.observation import Observation
from d2ppo_core.rl.ppo import PPO
from d2ppo_core.rl.rollout import Rollout
from oracles import Weights, denoise_mean, diffusion_mlp, log_normal, residual_trunk, small_policy

Array = np.ndarray
DDPM = SamplerSpec(train_steps=6, steps=6, finetuned_steps=4)
DDIM = SamplerSpec(kind="ddim", train_steps=20, steps=5, finetuned_steps=5, min_sampling_std=0.15, min_logprob_std=0.2)
HALF = SamplerSpec(kind="ddim", train_steps=20, steps=4, finetuned_steps=2, eta=0.6)
T, N = 4, 3


def tiny(
    sampler: SamplerSpec | GaussianSpec, moved: float = 0.05, spec: dict[str, Any] | None = None, **config: Any
) -> tuple[PPO, Rollout, torch.Tensor]:
    """A rollout of random states by the policy itself, and PPO on a network that has moved since by `moved`.

    `spec`: what `small_spec` should have otherwise.
    """
    policy = small_policy(sampler, **(spec or {}))
    policy.freeze_base()
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    state, noise = Observation(normal(T * N, 1, 3)), normal(T * N, *policy.noise_shape)
    sample = policy.sample(state, noise, explore=True)
    torch.manual_seed(3)
    critic = StateCritic(3, (8, 8, 8)).double()
    with torch.no_grad():
        for p in policy.network.parameters():
            p.add_(moved * torch.randn(p.shape, generator=draw, dtype=torch.float64))
        value = critic(*policy.condition(state)) + 0.3 * normal(T * N)
    ppo = PPO(policy, critic, AlgorithmConfig(**({"clip": 0.05, "clip_base": 0.01, "batch": 16} | config)))
    ppo.clip, ppo.weight = ppo.clip.double(), ppo.weight.double()

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (T, N))

    flags = [np.zeros((T, N), dtype=bool)] * 4
    rollout = Rollout(
        state.map(rows),
        rows(sample.chain),
        rows(sample.log_prob),
        np.zeros((T, N)),
        *flags,
        rows(value),
        rows(value),
        rows(value),
        0,
    )
    return ppo, rollout, normal(T, N)


class Reference:
    """The losses of chosen (chunk, k) pairs, one at a time, from weights alone."""

    def __init__(self, ppo: PPO, rollout: Rollout, advantage: torch.Tensor, pairs: list[tuple[int, int]]) -> None:
        self.s, self.c, self.net = ppo.policy.spec.sampler, ppo.config, ppo.policy.spec.network
        self.pairs, self.executed = pairs, ppo.policy.spec.executed
        self.state = rollout.observation.state.flatten(0, 1)[:, 0].numpy()
        self.chain, self.old = rollout.chain.flatten(0, 1).numpy(), rollout.log_prob.flatten(0, 1).numpy()
        self.A, self.V = advantage.flatten().numpy(), rollout.value.flatten().numpy()

    def log_prob(self, w: Weights, state: Array, x: Array, x_next: Array, k: int) -> float:
        """Mean over the executed steps of the clamped element-wise density of fine-tuned step k."""
        i = self.s.steps - self.s.finetuned_steps + k

        def predict(x: Array, t: int) -> Array:
            return diffusion_mlp(w, self.net, x, np.array([t]), state[None])[0]

        _, mean, sigma = denoise_mean(self.s, self.s.eta, i, x[None], predict)
        return self.mean(log_normal(x_next[None], mean, max(sigma, self.s.min_logprob_std))[0])

    def entropy(self, w: Weights) -> float:
        return self.s.eta

    def mean(self, element_wise: Array) -> float:
        steps = self.c.reward_horizon or self.executed
        return float(np.clip(element_wise[:steps], self.c.logprob_min, self.c.logprob_max).mean())

    def losses(self, actor: Weights, critic: Weights, bc_chains: dict[int, Array] | None = None) -> dict[str, float]:
        c, K = self.c, self.s.finetuned_steps
        A = np.array([self.A[b] for b, _ in self.pairs])
        if c.normalise_advantage:
            A = (A - A.mean()) / (A.std(ddof=1) + 1e-8)
        A = np.clip(A, np.quantile(A, c.advantage_clip_low), np.quantile(A, c.advantage_clip_high))
        policy, value, kl, clipped = [], [], [], []
        for (b, k), a in zip(self.pairs, A, strict=True):
            a_k = a * c.denoising_discount ** (K - 1 - k)
            u = k / (K - 1) if K > 1 else 1.0
            epsilon = c.clip_base + (c.clip - c.clip_base) * (math.exp(c.clip_rate * u) - 1) / (
                math.exp(c.clip_rate) - 1
            )
            log_ratio = self.log_prob(actor, self.state[b], self.chain[b, k], self.chain[b, k + 1], k) - self.mean(
                self.old[b, k]
            )
            ratio = math.exp(log_ratio)
            policy.append(max(-a_k * ratio, -a_k * min(max(ratio, 1 - epsilon), 1 + epsilon)))
            clipped.append(abs(ratio - 1) > epsilon)
            numbers = log_ratio * ((c.reward_horizon or self.executed) * 2 if c.kl_per == "chunk" else 1)
            kl.append(math.exp(numbers) - 1 - numbers)
            v, target = (
                residual_trunk(critic, "trunk", self.state[b][None], 1, "mish", False)[0][0, 0],
                self.A[b] + self.V[b],
            )
            error = (v - target) ** 2
            if c.value_clip:
                error = max(error, (self.V[b] + np.clip(v - self.V[b], -c.value_clip, c.value_clip) - target) ** 2)
            value.append(0.5 * error)
        bc = 0.0
        if bc_chains is not None:
            bc = -float(
                np.mean(
                    [
                        self.log_prob(actor, self.state[b], chain[k], chain[k + 1], k)
                        for b, chain in bc_chains.items()
                        for k in range(K)
                    ]
                )
            )
        mean = {
            "policy": np.mean(policy),
            "value": np.mean(value),
            "bc": bc,
            "kl": np.mean(kl),
            "clip_fraction": np.mean(clipped),
        }
        total = mean["policy"] + c.value_coef * mean["value"] + c.bc_coef * bc - c.entropy_coef * self.entropy(actor)
        return {k: float(v) for k, v in mean.items()} | {"total": float(total)}
