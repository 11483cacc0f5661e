"""PPO through the denoising chain: every loss term and gradient against a float64 NumPy reading of the DPPO paper."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from d2ppo_core.conf.schema import Minibatch
from d2ppo_core.network_specs import SamplerSpec
from d2ppo_core.observation import Observation
from d2ppo_core.rl.importance import StepSampler, denoising_weights, step_sampler
from d2ppo_core.rl.ppo import chunk_log_prob, clip_schedule
from oracles import Weights, denoise, denoise_mean, diffusion_mlp, log_normal, weights_of
from ppo_reference import DDIM, DDPM, HALF, N, Reference, T, tiny

Array = np.ndarray


def chosen(mode: Minibatch, K: int) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Some units of the minibatch, and the (chunk, k) pairs they must mean."""
    if mode is Minibatch.chain:
        return torch.tensor([7, 0, 4, 11]), [(b, k) for b in (7, 0, 4, 11) for k in range(K)]
    pairs = [(0, 0), (3, K - 1), (11, 1), (5, 0), (5, 1), (2, K - 1), (8, 0), (9, K - 1), (1, 1), (10, 0)]
    return torch.tensor([b * K + k for b, k in pairs]), pairs


OPTIONS = {
    "plain": {},
    "raw advantage, no discount": {"normalise_advantage": False, "denoising_discount": 1.0},
    "quantiles": {"advantage_clip_low": 0.1, "advantage_clip_high": 0.8, "denoising_discount": 0.7},
    "value clip": {"value_clip": 0.1, "value_coef": 2.0},
    "entropy": {"entropy_coef": 0.3},
    "wide": {"clip": 10.0, "clip_base": 10.0},
    "horizon": {"reward_horizon": 3, "kl_per": "dimension"},
    "cut": {"logprob_min": -0.5, "logprob_max": 0.9},
}


@pytest.mark.parametrize("mode", [Minibatch.pair, Minibatch.chain])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [(DDPM, o) for o in OPTIONS] + [(DDIM, "plain"), (HALF, "plain"), (DDIM, "cut"), (HALF, "quantiles")],
    ids=lambda v: v if isinstance(v, str) else v.kind + str(v.steps),
)
def test_losses_and_gradients_equal_the_reference(sampler: SamplerSpec, options: str, mode: Minibatch) -> None:
    """Values; and for each parameter tensor of actor and critic the derivative along a random direction."""
    ppo, rollout, advantage = tiny(sampler, **OPTIONS[options])
    index, pairs = chosen(mode, sampler.finetuned_steps)
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), index, mode))
    reference = Reference(ppo, rollout, advantage, pairs)
    actor, critic = weights_of(ppo.policy.network), weights_of(ppo.critic)
    expected = reference.losses(actor, critic)
    got = {
        "policy": losses.policy.item(),
        "value": losses.value.item(),
        "bc": losses.bc.item(),
        "kl": losses.kl,
        "clip_fraction": losses.clip_fraction,
        "total": losses.total.item(),
    }
    assert got == pytest.approx(expected, abs=2e-6, rel=2e-5)
    assert (0 < expected["clip_fraction"] < 1) == (options != "wide")
    losses.total.backward()
    check_gradient(reference, {"actor": actor, "critic": critic}, {"actor": ppo.policy.network, "critic": ppo.critic})


def check_gradient(
    reference: Reference, weights: dict[str, Weights], modules: dict[str, torch.nn.Module], **more: Any
) -> None:
    rng, h = np.random.default_rng(0), 1e-6
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            direction = rng.normal(size=parameter.shape)
            values = []
            for sign in (1, -1):
                moved = {k: dict(v) for k, v in weights.items()}
                moved[part][name] = weights[part][name] + sign * h * direction
                values.append(reference.losses(moved["actor"], moved["critic"], **more)["total"])
            slope = 0.0 if parameter.grad is None else float((parameter.grad.numpy() * direction).sum())
            assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-3, abs=1e-5), f"{part} {name}"


@pytest.mark.parametrize("mode", [Minibatch.pair, Minibatch.chain])
def test_behaviour_cloning_term(mode: Minibatch) -> None:
    """Chains of the frozen pre-trained network from given noise, their log-probability under the trained one."""
    ppo, rollout, advantage = tiny(HALF, bc_coef=0.4, kl_per="dimension")
    index, pairs = chosen(mode, 2)
    chunks = sorted({b for b, _ in pairs})  # each chunk's observation is cloned once
    noise = torch.randn(len(chunks), 5, 3, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), index, mode), noise)
    reference, base, spec = Reference(ppo, rollout, advantage, pairs), weights_of(ppo.policy.base), ppo.policy.spec  # type: ignore[arg-type]
    state = reference.state[chunks]
    loop = denoise(
        HALF, True, noise.numpy(), lambda x, t: diffusion_mlp(base, spec.network, x, np.full(len(x), t), state)[0]
    )
    by_chunk = dict(zip(chunks, np.stack(loop.x[2:], 1), strict=True))
    actor, critic = weights_of(ppo.policy.network), weights_of(ppo.critic)
    expected = reference.losses(actor, critic, by_chunk)
    assert losses.bc.item() == pytest.approx(expected["bc"], abs=1e-4)
    assert losses.total.item() == pytest.approx(expected["total"], abs=1e-4)
    losses.total.backward()
    check_gradient(reference, {"actor": actor, "critic": critic}, {"actor": ppo.policy.network}, bc_chains=by_chunk)
    assert all(p.grad is None for p in ppo.policy.base.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("probability", ["uniform", "discount", "4 1 2 3"])
def test_drawn_steps_stand_for_the_whole_chain(probability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """minibatch=importance: the expectation over the drawn step, step by step, is the loss of whole chains (Eq. 34)."""
    ppo, rollout, advantage = tiny(
        DDPM, importance_steps=1, importance_probability=probability, normalise_advantage=False, denoising_discount=0.8
    )
    flat, index, K = ppo._flatten(rollout, advantage), torch.tensor([2, 7, 5]), 4
    whole = ppo.losses(ppo._gather(flat, index, Minibatch.chain)).policy.item()
    p, expectation = step_sampler(K, 1, probability, 0.8).p, 0.0
    for k in range(K):
        monkeypatch.setattr(StepSampler, "draw", lambda self, chunks, draw, k=k: torch.full((chunks, 1), k))
        expectation += p[k].item() * ppo.losses(ppo._gather(flat, index, Minibatch.importance, (0,))).policy.item()
    assert expectation == pytest.approx(whole, rel=1e-9)


def test_drawn_steps_are_named_by_the_minibatch() -> None:
    ppo, rollout, advantage = tiny(DDPM, importance_steps=3)
    flat, index = ppo._flatten(rollout, advantage), torch.arange(12)
    one, again, other = (ppo._gather(flat, index, Minibatch.importance, (1, n)) for n in (4, 4, 5))
    assert torch.equal(one.k, again.k) and not torch.equal(one.k, other.k)
    assert one.chunk.tolist() == sorted(3 * list(range(12)))
    torch.testing.assert_close(one.weight, torch.ones(36, dtype=torch.float64))  # uniform: as good as pairs


@pytest.mark.parametrize(
    ("K", "expected"),
    [
        (10, [0.00100, 0.00119, 0.00145, 0.00181, 0.00232, 0.00303, 0.00401, 0.00539, 0.00732, 0.01000]),
        (5, [0.001 + 0.009 * (math.exp(3 * u) - 1) / (math.exp(3) - 1) for u in (0, 0.25, 0.5, 0.75, 1)]),
        (1, [0.01]),
    ],
)
def test_clip_schedule(K: int, expected: list[float]) -> None:
    """Published numbers: the noisiest step gets the base, the last the full clip; one step is no 0/0."""
    np.testing.assert_allclose(clip_schedule(K, 0.01, 0.001, 3), expected, atol=5.1e-6)
    np.testing.assert_allclose(clip_schedule(K, 0.02, 0.02, 3), 0.02, atol=1e-9)
    linear = clip_schedule(K, 0.01, 0.001, 0)
    np.testing.assert_allclose(linear, np.linspace(0.001, 0.01, K) if K > 1 else [0.01], atol=1e-9)


def test_weights_discount_the_noisier_steps() -> None:
    np.testing.assert_allclose(denoising_weights(4, 0.9), [0.729, 0.81, 0.9, 1], rtol=1e-6)


def test_chunk_log_prob_clamps_each_number_then_averages_the_executed_ones() -> None:
    x = torch.tensor([[[-9.0, 0.0], [3.0, 1.0], [100.0, 100.0]]])
    assert chunk_log_prob(x, 2, -5, 2).item() == pytest.approx((-5 + 0 + 2 + 1) / 4)
    assert chunk_log_prob(x, 3, -5, 2).item() == pytest.approx((-5 + 0 + 2 + 1 + 2 + 2) / 6)


@pytest.mark.parametrize("sampler", [DDPM, DDIM, HALF], ids=lambda s: s.kind + str(s.steps))
def test_recorded_log_prob_is_the_recomputed_and_the_brute_force_one(sampler: SamplerSpec) -> None:
    """What acting recorded equals `log_prob` with the same weights, and a Gaussian evaluated by hand."""
    ppo, rollout, advantage = tiny(sampler, moved=0.0)
    policy, K = ppo.policy, sampler.finetuned_steps
    state, chain = rollout.observation.state.flatten(0, 1), rollout.chain.flatten(0, 1)
    code = policy.encode(Observation(state))
    w, first = weights_of(policy.network), sampler.steps - K
    for k in range(K):
        again = policy.log_prob(code, chain[:, k], chain[:, k + 1], torch.full((T * N,), k))
        torch.testing.assert_close(again, rollout.log_prob.flatten(0, 1)[:, k], rtol=0, atol=1e-10)
        _, mean, sigma = denoise_mean(
            sampler,
            sampler.eta,
            first + k,
            chain[:, k].numpy(),
            lambda x, t: diffusion_mlp(w, policy.spec.network, x, np.full(len(x), t), state[:, 0].numpy())[0],
        )
        expected = log_normal(chain[:, k + 1].numpy(), mean, max(sigma, sampler.min_logprob_std))
        np.testing.assert_allclose(again.detach(), expected, atol=5e-4)
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), torch.arange(T * N * K), Minibatch.pair))
    assert losses.ratio_deviation < 1e-9
    assert losses.kl < 1e-12
