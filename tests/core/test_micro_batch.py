"""A minibatch in parts is the minibatch: the same gradients and figures, each observation encoded once in a part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from d2ppo_core.conf.schema import Minibatch
from d2ppo_core.network_specs import GaussianSpec, GMMMLPSpec, SamplerSpec
from d2ppo_core.rl.ppo import PPO, PairBatch
from ppo_reference import DDPM, HALF, tiny

GMM = GaussianSpec(kind="gmm", learn_std=True)
UNITS = {  # of 12 chunks; the last part of 5 pairs is shorter
    Minibatch.pair: [7, 0, 23, 11, 4, 5, 1, 30, 12, 13, 47],
    Minibatch.chain: [7, 0, 4, 11],
    Minibatch.importance: [7, 0, 4, 11],
}
OPTIONS = {"value_clip": 0.1, "entropy_coef": 0.3, "advantage_clip_high": 0.8}


def updated(
    sampler: SamplerSpec | GaussianSpec, mode: Minibatch, micro_batch: int
) -> tuple[PPO, dict[str, float], int]:
    """One gradient step; its figures and the number of pairs."""
    spec = {"network": GMMMLPSpec(hidden=(8, 8, 8), modes=3)} if isinstance(sampler, GaussianSpec) else None
    ppo, rollout, advantage = tiny(sampler, spec=spec, micro_batch=micro_batch, **OPTIONS)
    units = torch.tensor([u % (12 * ppo.K) for u in UNITS[mode]])
    batch = ppo._gather(ppo._flatten(rollout, advantage), units, mode, (1,))
    return ppo, ppo._step(batch, True, (0,)), len(batch.chunk)


@pytest.mark.parametrize("mode", list(UNITS), ids=lambda m: m.value)
@pytest.mark.parametrize("sampler", [DDPM, HALF, GMM], ids=lambda s: s.kind)
def test_gradients_and_figures_are_those_of_the_whole(sampler: SamplerSpec | GaussianSpec, mode: Minibatch) -> None:
    whole, expected, pairs = updated(sampler, mode, 0)
    for size in (5, 1, pairs - 1, pairs, 10**6):
        parts, figures, _ = updated(sampler, mode, size)
        for name, value in expected.items():  # the clip fraction is a float32 mean
            assert figures[name] == pytest.approx(value, rel=1e-6 if "fraction" in name else 1e-9, abs=1e-12)
        for one, other in ((whole.policy.network, parts.policy.network), (whole.critic, parts.critic)):
            for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-12, msg=name)
                torch.testing.assert_close(q, p, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("mode", list(UNITS), ids=lambda m: m.value)
def test_each_observation_is_encoded_once_in_a_part(mode: Minibatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the policy and by the critic: however many of its denoising steps a part holds."""
    ppo, rollout, advantage = tiny(DDPM, micro_batch=5)
    seen: dict[str, list[int]] = {"policy": [], "critic": []}
    parts: list[PairBatch] = []

    def counted(name: str, real: Any) -> Any:
        def forward(state: Tensor, images: Tensor | None = None) -> Tensor:
            seen[name].append(len(state))
            assert len(state.unique(dim=0)) == len(state)
            return real(state, images)

        return forward

    monkeypatch.setattr(ppo.policy.network, "encode", counted("policy", ppo.policy.network.encode))
    monkeypatch.setattr(ppo.critic, "forward", counted("critic", ppo.critic.forward))
    losses = ppo.losses
    monkeypatch.setattr(ppo, "losses", lambda part, noise=None: (parts.append(part), losses(part, noise))[1])
    batch = ppo._gather(ppo._flatten(rollout, advantage), torch.tensor(UNITS[mode]), mode, (1,))
    ppo._step(batch, True, (0,))
    assert [len(part.chunk) for part in parts] == [min(5, len(batch.chunk) - n) for n in range(0, len(batch.chunk), 5)]
    assert 0 < len(parts[-1].chunk) < 5
    assert seen["policy"] == seen["critic"] == [len(part.chunk.unique()) for part in parts]
    assert torch.equal(torch.cat([part.k for part in parts]), batch.k)
    assert torch.equal(torch.cat([part.A for part in parts]), batch.A)


def test_whole_chains_clone_one_chain_for_each_chunk() -> None:
    """With the cloning term every part draws its own noise, so only the expectation is the whole's; it is finite and
    of every chunk."""
    ppo, rollout, advantage = tiny(HALF, micro_batch=4, bc_coef=0.5)
    batch = ppo._gather(ppo._flatten(rollout, advantage), torch.arange(12), Minibatch.chain)
    cloned: list[int] = []
    real = ppo.policy.sample_base
    ppo.policy.sample_base = lambda seen, noise: (cloned.append(len(noise)), real(seen, noise.double()))[1]  # type: ignore[method-assign]
    figures = ppo._step(batch, True, (0,))
    assert cloned == [2] * 6  # two chunks' chains of two steps in each part
    assert figures["ppo/bc_loss"] != 0
    assert all(torch.isfinite(p.grad).all() for p in ppo.policy.network.parameters())
