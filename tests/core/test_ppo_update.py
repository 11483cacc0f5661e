"""PPO's update: what a minibatch draws, when it stops, what it moves; and which network takes which denoising step."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from d2ppo_core.conf.schema import Minibatch
from d2ppo_core.network_specs import SamplerSpec
from d2ppo_core.observation import Observation
from d2ppo_core.policies.diffusion import DiffusionPolicy
from d2ppo_core.rl.ppo import PPO
from oracles import denoise, diffusion_mlp, small_policy, weights_of
from ppo_reference import DDIM, DDPM, HALF, N, tiny

Array = np.ndarray


def spy(ppo: PPO) -> list[Any]:
    """Records every minibatch that the update draws."""
    seen: list[Any] = []
    real = ppo.losses
    ppo.losses = lambda batch, noise=None: (seen.append(batch), real(batch, noise))[1]  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(
    ("mode", "batch", "steps"), [(Minibatch.pair, 16, 3), (Minibatch.chain, 4, 3), (Minibatch.pair, 10**6, 1)]
)
def test_every_pair_is_drawn_exactly_once_an_epoch(mode: Minibatch, batch: int, steps: int) -> None:
    """12 chunks of 4 fine-tuned steps; another order in each epoch; log-probability, advantage stay with their pair."""
    ppo, rollout, advantage = tiny(DDPM, moved=0.0, batch=batch, epochs=2, target_kl=0.0)
    seen = spy(ppo)
    result = ppo.update(rollout, advantage, mode, (1, 2), train_actor=False)
    assert result["ppo/gradient_steps"] == len(seen) == 2 * steps
    flat = advantage.flatten()
    epochs = []
    for epoch in (seen[:steps], seen[steps:]):
        pairs = []
        for drawn in epoch:
            chunks = [(flat == a).nonzero().item() for a in drawn.advantage]
            pairs += list(zip(chunks, drawn.k.tolist(), strict=True))
            for row, (b, k) in enumerate(zip(chunks, drawn.k.tolist(), strict=True)):
                n = (b // N, b % N)
                assert torch.equal(drawn.x[row], rollout.chain[n][k])
                assert torch.equal(drawn.x_next[row], rollout.chain[n][k + 1])
                assert torch.equal(drawn.old_log_prob[row], rollout.log_prob[n][k])
                assert torch.equal(drawn.observation[drawn.chunk[row]].state, rollout.observation.state[n])
                assert drawn.target[row] == advantage[n] + rollout.value[n]
        assert sorted(pairs) == [(b, k) for b in range(12) for k in range(4)]
        epochs.append(pairs)
    assert epochs[0] != epochs[1]


def test_critic_warm_up_leaves_the_actor_bit_unchanged() -> None:
    ppo, rollout, advantage = tiny(DDPM, epochs=2)
    actor, critic = copy.deepcopy(ppo.policy.network.state_dict()), copy.deepcopy(ppo.critic.state_dict())
    result = ppo.update(rollout, advantage, Minibatch.pair, (0,), train_actor=False)
    assert all(torch.equal(v, actor[k]) for k, v in ppo.policy.network.state_dict().items())
    assert any(not torch.equal(v, critic[k]) for k, v in ppo.critic.state_dict().items())
    assert not ppo.actor_optimiser.state
    assert result["ppo/gradient_steps"] == 6
    ppo.update(rollout, advantage, Minibatch.pair, (0,), train_actor=True)
    assert all(not torch.equal(v, actor[k]) for k, v in ppo.policy.network.state_dict().items())


@pytest.mark.parametrize(
    ("target", "train_actor", "steps"), [(1e-9, True, 1), (1e9, True, 6), (0.0, True, 6), (1e-9, False, 6)]
)
def test_kl_stops_the_update(target: float, train_actor: bool, steps: int) -> None:
    """After the gradient step that exceeded it; never without a target, nor while only the critic learns."""
    ppo, rollout, advantage = tiny(DDPM, epochs=2, target_kl=target)
    result = ppo.update(rollout, advantage, Minibatch.pair, (0,), train_actor)
    assert result["ppo/gradient_steps"] == steps
    assert result["ppo/stopped_by_kl"] == (steps == 1)


def test_the_optimiser_is_adam_without_decay_and_clips_the_actor_only() -> None:
    """Two steps against Kingma & Ba's update rule by hand (AdamW with weight decay 0)."""
    ppo, rollout, advantage = tiny(DDPM, max_grad_norm=0.05)
    batch = ppo._gather(ppo._flatten(rollout, advantage), torch.arange(48), Minibatch.pair)
    moments: dict[str, list[Array]] = {}
    for step in (1, 2):
        before, loss = {}, ppo.losses(batch).total
        modules = {"actor": (ppo.policy.network, 1e-4), "critic": (ppo.critic, 1e-3)}
        gradients = {
            part: torch.autograd.grad(loss, list(m.parameters()), retain_graph=True) for part, (m, _) in modules.items()
        }
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients["actor"]))
        assert norm > 0.05
        for part, (module, rate) in modules.items():
            for (name, p), g in zip(module.named_parameters(), gradients[part], strict=True):
                g = g.numpy() * (0.05 / (norm + 1e-6) if part == "actor" else 1)  # noqa: PLW2901
                m, v = moments.get(part + name, [np.zeros_like(g), np.zeros_like(g)])
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                moments[part + name] = [m, v]
                change = rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
                before[part + name] = p.detach().numpy() - change
        ppo._step(batch, True, (0,))
        for part, (module, _) in modules.items():
            for name, p in module.named_parameters():
                np.testing.assert_allclose(p.detach(), before[part + name], atol=1e-9, err_msg=name)


def shaken(network: torch.nn.Module) -> None:
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("sampler", [DDPM, HALF], ids=lambda s: s.kind)
def test_the_frozen_network_takes_the_first_steps_and_only_those(sampler: SamplerSpec, explore: bool) -> None:
    """Replace one network at a time and see which steps are taken differently."""
    policy, S = small_policy(sampler), sampler.steps
    policy.freeze_base()
    first = S - sampler.finetuned_steps
    state, noise = torch.randn(4, 1, 3).double(), torch.randn(4, S + 1, 3, 2).double()
    before = policy.sample(Observation(state), noise, explore).chain
    shaken(policy.network)
    changed = policy.sample(Observation(state), noise, explore).chain
    assert torch.equal(changed[:, 0], before[:, 0])  # the steps before are the base's
    assert not torch.equal(changed[:, 1], before[:, 1])
    shaken(policy.base)  # type: ignore[arg-type]
    both = policy.sample(Observation(state), noise, explore).chain
    assert not torch.equal(both[:, 0], changed[:, 0])
    base, net = weights_of(policy.base), weights_of(policy.network)  # type: ignore[arg-type]
    stride = sampler.train_steps // S

    def predict(x: Array, t: int) -> Array:
        i = S - 1 - t // stride
        return diffusion_mlp(
            base if i < first else net, policy.spec.network, x, np.full(len(x), t), state[:, 0].numpy()
        )[0]

    np.testing.assert_allclose(
        both, np.stack(denoise(sampler, explore, noise.numpy(), predict).x[first:], 1), atol=1e-3
    )


def test_a_policy_fine_tuned_everywhere_never_asks_its_base() -> None:
    policy: DiffusionPolicy = small_policy(DDIM)
    policy.freeze_base()
    state, noise = torch.randn(4, 1, 3).double(), torch.randn(4, 6, 3, 2).double()
    before = policy.sample(Observation(state), noise, True)
    assert torch.equal(before.chain[:, 0], noise[:, 0])  # K' = S: the initial noise is stored
    shaken(policy.base)  # type: ignore[arg-type]
    assert torch.equal(policy.sample(Observation(state), noise, True).chain, before.chain)
    trained = weights_of(policy.network)
    chain = policy.sample_base(Observation(state), noise)
    assert not torch.equal(chain, before.chain)
    assert all(np.array_equal(v, trained[k]) for k, v in weights_of(policy.network).items())  # swapped back
