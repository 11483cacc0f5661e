"""Sampling takes a short-cut through the network; step by step through the whole network it is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from d2ppo_core.inference import Actor
from d2ppo_core.network_specs import MLPSpec, SamplerSpec
from d2ppo_core.observation import Observation
from d2ppo_core.policies import fast
from d2ppo_core.policies.diffusion import DiffusionPolicy
from oracles import small_policy

SAMPLERS = [
    SamplerSpec(),
    SamplerSpec(finetuned_steps=7),
    SamplerSpec(kind="ddim", train_steps=100, steps=5, finetuned_steps=5),
    SamplerSpec(kind="ddim", steps=4, finetuned_steps=2, eta=0.4),
]
NETWORKS: dict[str, dict[str, Any]] = {
    "512x3": {},
    "deep, encoded, relu": {"hidden": (32,) * 7, "condition_hidden": (16, 8), "activation": "relu"},
    "layer norm": {"hidden": (32,) * 3, "layer_norm": True},
    "plain": {"hidden": (32, 24), "residual": False},
}


def fine_tuned(sampler: SamplerSpec, **network: Any) -> DiffusionPolicy:
    """A float32 policy whose network has moved away from its frozen base."""
    policy = small_policy(sampler, double=False, network=MLPSpec(**network))
    policy.freeze_base()
    with torch.no_grad():
        for p in policy.network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    return policy


@torch.no_grad()
def plain(policy: DiffusionPolicy, observation: Observation, noise: torch.Tensor, explore: bool) -> torch.Tensor:
    """Every step's result (B, S+1, H, Da), from forward passes of the whole networks."""
    chain, s = policy.exploring if explore else policy.acting, policy.spec.sampler
    xs, stds = [noise[:, 0]], chain.sampling_std()
    for i in range(s.steps):
        network = policy.base if i < s.steps - s.finetuned_steps else policy.network
        which = torch.full((len(noise),), i)
        epsilon, _ = network(xs[-1], chain.t[which], network.encode(*policy.condition(observation)))
        z = noise[:, i + 1].clamp(-s.noise_clip, s.noise_clip)
        xs.append(chain.mean(xs[-1], epsilon, which) + stds[i] * z)
    return torch.stack(xs, 1)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.kind}-{s.steps}-{s.finetuned_steps}")
@pytest.mark.parametrize("network", NETWORKS)
def test_sampling_equals_whole_forward_passes(network: str, sampler: SamplerSpec, explore: bool, rows: int) -> None:
    """One observation and several; a forgotten bias, base network, step or part of the code would be far off."""
    policy, draw = fine_tuned(sampler, **NETWORKS[network]), torch.Generator().manual_seed(1)
    observation = Observation(torch.randn(rows, 1, 3, generator=draw))
    noise = torch.randn(rows, *policy.noise_shape, generator=draw)
    expected, got = plain(policy, observation, noise, explore), policy.sample(observation, noise, explore)
    torch.testing.assert_close(got.chunk, expected[:, -1], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.chain, expected[:, -1 - sampler.finetuned_steps :], atol=1e-5, rtol=0)


def test_the_actor_takes_the_short_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """And sees weights as they are now, not as they were at an earlier chunk."""
    policy, taken = fine_tuned(SAMPLERS[1]), []
    shortened = fast._residual_mlp
    monkeypatch.setattr(fast, "_residual_mlp", lambda *arguments: taken.append(1) or shortened(*arguments))
    actor, raw = Actor(policy, 0), {"a": np.zeros((1, 1, 1)), "b": np.zeros((1, 1, 2))}
    before = actor.act(raw, [3], [0])
    assert len(taken) == 2  # the frozen network and the tuned one
    with torch.no_grad():
        policy.network.trunk.last.bias.add_(0.5)
    assert not np.array_equal(actor.act(raw, [3], [0]), before)
