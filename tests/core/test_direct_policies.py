"""Gaussian and mixture policies: drawing, densities, losses and PPO's gradients against NumPy and SciPy in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax, logsumexp, ndtr, softmax
from scipy.stats import multivariate_normal, norm

from d2ppo_core.conf.schema import Minibatch
from d2ppo_core.network_specs import (
    GaussianMLPSpec,
    GaussianSpec,
    GaussianTransformerSpec,
    GMMMLPSpec,
    GMMTransformerSpec,
)
from d2ppo_core.observation import Observation
from d2ppo_core.policies.base import Policy
from network_oracles import gaussian_mlp, gaussian_transformer, gmm_mlp, gmm_transformer
from oracles import Weights, log_normal, small_policy, weights_of
from ppo_reference import N, Reference, T, tiny

Array = np.ndarray
GAUSSIAN = GaussianSpec(noise_clip=1.2, std=0.15)
GMM = GaussianSpec(kind="gmm", noise_clip=1.2, std=0.15)
NETWORKS = {
    "gaussian": [GaussianMLPSpec(hidden=(8, 8, 8)), GaussianTransformerSpec(width=8, depth=1, heads=2)],
    "gmm": [GMMMLPSpec(hidden=(8, 8, 8), modes=3), GMMTransformerSpec(width=8, depth=1, heads=2, modes=3)],
}
CASES = [(s, n) for s in (GAUSSIAN, GMM) for n in NETWORKS[s.kind]]
EVERY = pytest.mark.parametrize(("sampler", "network"), CASES, ids=lambda v: v.kind)
STD = pytest.mark.parametrize("learned", [False, True], ids=["fixed std", "learned std"])


def make(sampler: GaussianSpec, network: Any, learned: bool = False) -> tuple[Policy, Observation]:
    """A policy far from its initial weights, whose learned deviations lie below, inside and above their range."""
    policy = small_policy(sampler.model_copy(update={"learn_std": learned}), network=network)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in policy.network.parameters():
            p.add_(0.4 * torch.randn(p.shape, generator=draw, dtype=torch.float64))
        if learned:
            values = policy.network.log_variance
            values.copy_(2 * torch.linspace(math.log(0.004), math.log(0.5), values.numel()).view(values.shape))
    return policy, Observation(torch.randn(6, 1, 3, generator=draw, dtype=torch.float64))


def deviation(w: Weights, sampler: GaussianSpec, shape: tuple[int, ...]) -> Array:
    if "log_variance" not in w:
        return np.full(shape, sampler.std)
    return np.clip(np.exp(w["log_variance"] / 2), sampler.std_min, sampler.std_max)


def mixture(w: Weights, sampler: GaussianSpec, network: Any, state: Array) -> tuple[Array, Array, Array]:
    """Means (B, M, H, Da), logits (B, M), deviations (M, Da); a Gaussian is a mixture of one."""
    if sampler.kind == "gaussian":
        if network.kind == "gaussian_mlp":
            means, _ = gaussian_mlp(w, network, (3, 2), state)
        else:
            means, _ = gaussian_transformer(w, network, state)
        return means[:, None], np.zeros((len(state), 1)), deviation(w, sampler, (2,))[None]
    if network.kind == "gmm_mlp":
        means, logits, _ = gmm_mlp(w, network, (3, 2), state)
    else:
        means, logits, _ = gmm_transformer(w, network, state)
    return means, logits, deviation(w, sampler, (network.modes, 2))


def chunk_log_density(x: Array, means: Array, logits: Array, std: Array) -> float:
    """SciPy's mixture of multivariate normals; x (D,), means (M, D), std (M, D)."""
    parts = [multivariate_normal(m, np.diag(s**2)).logpdf(x) for m, s in zip(means, std, strict=True)]
    return float(logsumexp(log_softmax(logits) + np.array(parts)))


def number_by_number(chunk: Array, means: Array, logits: Array, std: Array) -> Array:
    """log p(a_d | a_1 .. a_{d-1}) of one chunk (H, Da): densities of its beginnings, each minus the one before."""
    M = len(means)
    each = log_normal(chunk.ravel(), means.reshape(M, -1), np.tile(std, (1, len(chunk))))  # type: ignore[arg-type]
    beginnings = [logsumexp(log_softmax(logits) + each[:, :d].sum(1)) for d in range(chunk.size + 1)]
    return np.diff(beginnings).reshape(chunk.shape)


def log_prob(w: Weights, sampler: GaussianSpec, network: Any, state: Array, chunk: Array) -> Array:
    means, logits, std = mixture(w, sampler, network, state)
    return np.stack([number_by_number(chunk[b], means[b], logits[b], std) for b in range(len(chunk))])


@EVERY
@STD
@pytest.mark.parametrize("explore", [True, False])
def test_samples_and_their_log_prob(sampler: GaussianSpec, network: Any, learned: bool, explore: bool) -> None:
    """mean + std clip(z), of the mode whose share of (0, 1) holds Phi(z_0); nothing is before the draw."""
    policy, seen = make(sampler, network, learned)
    noise = torch.randn(6, *policy.noise_shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert noise[:, -1].abs().max() > sampler.noise_clip
    sample, w = policy.sample(seen, noise, explore), weights_of(policy.network)
    means, logits, std = mixture(w, sampler, network, seen.state[:, 0].numpy())
    z, expected = np.clip(noise[:, -1].numpy(), -1.2, 1.2), []
    for b in range(6):
        u = ndtr(noise[b, 0, 0, 0].item())
        mode = next(m for m, edge in enumerate(np.cumsum(softmax(logits[b]))) if u <= edge + 1e-12)
        expected.append(means[b, mode] + (std[mode] * z[b] if explore else 0))
    np.testing.assert_allclose(sample.chunk, expected, atol=1e-7)
    assert torch.equal(sample.chain[:, 1], sample.chunk)
    assert not sample.chain[:, 0].any()
    assert sample.chain.shape == (6, 2, 3, 2)
    densities = log_prob(w, sampler, network, seen.state[:, 0].numpy(), sample.chunk.numpy())
    np.testing.assert_allclose(sample.log_prob[:, 0], densities, atol=1e-6)
    again = policy.log_prob(policy.encode(seen), sample.chain[:, 0], sample.chunk, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(again.detach(), sample.log_prob[:, 0], rtol=0, atol=1e-12)
    joint = [
        chunk_log_density(
            sample.chunk[b].numpy().ravel(), means[b].reshape(len(std), -1), logits[b], np.tile(std, (1, 3))
        )
        for b in range(6)
    ]
    np.testing.assert_allclose(sample.log_prob.sum((1, 2, 3)), joint, atol=1e-6)


@EVERY
@STD
def test_loss_and_entropy(sampler: GaussianSpec, network: Any, learned: bool) -> None:
    """Of any chunks, far ones included: what is unlikely under all modes must not underflow."""
    policy, seen = make(sampler, network, learned)
    chunk = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    chunk[0] *= 30
    w = weights_of(policy.network)
    densities = log_prob(w, sampler, network, seen.state[:, 0].numpy(), chunk.numpy())
    assert policy.training_noise(6, torch.Generator()) == ()
    loss = policy.loss(seen, chunk, ())
    assert loss.imitation.item() == pytest.approx(-densities.mean(), rel=1e-6)
    assert loss.dispersive.item() == 0
    std = policy.std().detach()
    assert std.shape == ((2,) if sampler.kind == "gaussian" else (3, 2))
    assert sampler.std_min * (1 - 1e-6) <= std.min() and std.max() <= sampler.std_max * (1 + 1e-6)
    expected = deviation(w, sampler, tuple(std.shape))
    np.testing.assert_allclose(std, expected, rtol=1e-6)
    assert policy.entropy().item() == pytest.approx(norm(scale=expected).entropy().mean(), rel=1e-6)


def test_modes_are_drawn_as_often_as_they_weigh() -> None:
    """20 000 draws for one state; only the first number of the first row chooses."""
    policy, seen = make(GMM, NETWORKS["gmm"][0])
    one, n = Observation(seen.state[:1].expand(20_000, -1, -1)), 20_000
    noise = torch.randn(n, *policy.noise_shape, generator=torch.Generator().manual_seed(7)).double()
    chunks = policy.sample(one, noise, explore=False).chunk.numpy()
    means, logits, _ = mixture(weights_of(policy.network), GMM, NETWORKS["gmm"][0], seen.state[:1, 0].numpy())
    distance = np.abs(chunks[:, None] - means).max((2, 3))
    assert distance.min(1).max() < 1e-8  # each is the mean of a mode
    share, p = np.bincount(distance.argmin(1), minlength=3) / n, softmax(logits[0])
    assert p.min() > 0.02
    assert np.abs(share - p).max() < 5 * np.sqrt(0.25 / n)
    other = noise.clone()
    other[:, 0].view(n, -1)[:, 1:] = 9.0
    assert torch.equal(policy.sample(one, other, explore=False).chunk, policy.sample(one, noise, explore=False).chunk)
    other[:, 0] = 40.0  # Phi is 1: rounding must not choose a mode that is not there
    assert policy.sample(one, other, explore=False).chunk.isfinite().all()


def test_a_deviation_at_its_bound_comes_back() -> None:
    """Outside its range the gradient is kept only where it leads inside; a plain clamp would hold it for ever."""
    policy, seen = make(GaussianSpec(), NETWORKS["gaussian"][0], learned=True)
    means = policy.sample(seen, torch.zeros(6, *policy.noise_shape).double(), explore=False).chunk
    for start, away, leaves in ((0.5, 0.05, True), (0.5, 1.0, False), (0.005, 0.05, True), (0.005, 0.001, False)):
        with torch.no_grad():
            policy.network.log_variance.fill_(2 * math.log(start))
        policy.network.zero_grad()
        policy.loss(seen, means + away, ()).imitation.backward()
        gradient = policy.network.log_variance.grad
        assert bool(gradient.any()) == leaves
        if leaves:
            assert (gradient > 0).all() == (start > 0.2)
    optimiser = torch.optim.Adam([policy.network.log_variance], lr=0.05, betas=(0.9, 0.9))
    for away, expected in ((1.0, 0.2), (0.05, 0.05), (0.001, 0.01), (0.1, 0.1)):
        for _ in range(250):
            optimiser.zero_grad()
            policy.loss(seen, means + away, ()).imitation.backward()
            optimiser.step()
        assert policy.std().detach().numpy() == pytest.approx(np.full(2, expected), rel=0.05)


@pytest.mark.parametrize("kind", ["gaussian", "gmm"])
def test_the_sampler_decides_whether_the_deviation_is_learned(kind: str) -> None:
    policy, _ = make(GaussianSpec(kind=kind), NETWORKS[kind][0])  # type: ignore[arg-type]
    shape = (2,) if kind == "gaussian" else (3, 2)
    assert policy.network.log_variance is None
    policy.set_sampler(GaussianSpec(kind=kind, learn_std=True, std=0.05))  # type: ignore[arg-type]
    assert policy.std().tolist() == pytest.approx(np.full(shape, 0.05))  # type: ignore[comparison-overlap]
    with torch.no_grad():
        policy.network.log_variance.fill_(2 * math.log(0.15))
    policy.set_sampler(GaussianSpec(kind=kind, learn_std=True, std=0.05))  # type: ignore[arg-type]
    assert policy.std().detach().numpy() == pytest.approx(np.full(shape, 0.15))  # what was learned stays
    policy.set_sampler(GaussianSpec(kind=kind, std=0.07))  # type: ignore[arg-type]
    assert policy.std().numpy() == pytest.approx(np.full(shape, 0.07))
    assert "log_variance" not in policy.network.state_dict()


def test_a_learned_deviation_starts_inside_its_range() -> None:
    for wrong in ({"std": 0.3}, {"std": 0.005}, {"std_min": 0.3}):
        with pytest.raises(ValidationError, match="a learned std starts inside"):
            GaussianSpec(learn_std=True, **wrong)
    assert GaussianSpec(std=0.3).std == 0.3  # a fixed one has no range


# --- PPO --------------------------------------------------------------------------------------------------------------


class DirectReference(Reference):
    """The same losses, of policies that draw a chunk in one step."""

    def log_prob(self, w: Weights, state: Array, x: Array, x_next: Array, k: int) -> float:
        return self.mean(log_prob(w, self.s, self.net, state[None], x_next[None])[0])

    def entropy(self, w: Weights) -> float:
        shape = (2,) if self.s.kind == "gaussian" else (self.net.modes, 2)
        return float(norm(scale=deviation(w, self.s, shape)).entropy().mean())


OPTIONS = {
    "plain": {},
    "quantiles": {"advantage_clip_low": 0.1, "advantage_clip_high": 0.8},
    "value clip": {"value_clip": 0.1, "value_coef": 2.0},
    "entropy": {"entropy_coef": 0.3},
    "wide": {"clip": 10.0, "clip_base": 10.0},
    "horizon": {"reward_horizon": 3, "kl_per": "dimension"},
    "cut": {"logprob_min": -0.5, "logprob_max": 0.9},
}
CHUNKS = [7, 0, 4, 11, 2, 9]


@pytest.mark.parametrize(
    ("sampler", "network", "options", "mode"),
    [(s, NETWORKS[s.kind][0], o, Minibatch.pair) for s in (GAUSSIAN, GMM) for o in OPTIONS]
    + [(s, NETWORKS[s.kind][1], "entropy", Minibatch.chain) for s in (GAUSSIAN, GMM)],
    ids=lambda v: getattr(v, "kind", None) or getattr(v, "value", v),
)
def test_ppo_losses_and_gradients(sampler: GaussianSpec, network: Any, options: str, mode: Minibatch) -> None:
    """With a learned deviation; for each tensor of actor and critic the derivative along a random direction."""
    learned = sampler.model_copy(update={"learn_std": True})
    ppo, rollout, advantage = tiny(learned, moved=0.02, spec={"network": network}, **OPTIONS[options])
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), torch.tensor(CHUNKS), mode))
    reference = DirectReference(ppo, rollout, advantage, [(b, 0) for b in CHUNKS])
    actor, critic = weights_of(ppo.policy.network), weights_of(ppo.critic)
    assert "log_variance" in actor
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
    assert (expected["clip_fraction"] > 0) == (options != "wide")
    losses.total.backward()
    rng, h = np.random.default_rng(0), 1e-6
    for part, module in (("actor", ppo.policy.network), ("critic", ppo.critic)):
        for name, p in module.named_parameters():
            direction, values = rng.normal(size=p.shape), []
            for sign in (1, -1):
                moved = {"actor": dict(actor), "critic": dict(critic)}
                moved[part][name] = moved[part][name] + sign * h * direction
                values.append(reference.losses(moved["actor"], moved["critic"])["total"])
            slope = 0.0 if p.grad is None else float((p.grad.numpy() * direction).sum())
            assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-3, abs=1e-5), f"{part} {name}"
    assert ppo.policy.network.log_variance.grad.any()


@pytest.mark.parametrize("sampler", [GAUSSIAN, GMM], ids=lambda s: s.kind)
def test_cloning_the_frozen_policy(sampler: GaussianSpec) -> None:
    """Its exploring draws, under its own deviation, scored by the trained policy."""
    network = NETWORKS[sampler.kind][0]
    learned = sampler.model_copy(update={"learn_std": True})
    ppo, rollout, advantage = tiny(learned, spec={"network": network}, bc_coef=0.4)
    policy, chunks = ppo.policy, sorted(CHUNKS)
    noise = torch.randn(len(CHUNKS), *policy.noise_shape, generator=torch.Generator().manual_seed(9)).double()
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), torch.tensor(CHUNKS), Minibatch.pair), noise)
    reference = DirectReference(ppo, rollout, advantage, [(b, 0) for b in CHUNKS])
    means, logits, std = mixture(weights_of(policy.base), learned, network, reference.state[chunks])  # type: ignore[arg-type]
    share = ndtr(noise[:, 0, 0, 0].numpy())
    mode = [int((np.cumsum(softmax(row)) < u).sum()) for row, u in zip(logits, share, strict=True)]
    drawn = [means[n, m] + std[m] * np.clip(noise[n, -1].numpy(), -1.2, 1.2) for n, m in enumerate(mode)]
    chains = {b: np.stack([np.zeros((3, 2)), chunk]) for b, chunk in zip(chunks, drawn, strict=True)}
    expected = reference.losses(weights_of(policy.network), weights_of(ppo.critic), chains)
    assert losses.bc.item() == pytest.approx(expected["bc"], abs=1e-6)
    assert losses.total.item() == pytest.approx(expected["total"], abs=1e-6)


@pytest.mark.parametrize("sampler", [GAUSSIAN, GMM], ids=lambda s: s.kind)
def test_nothing_moves_before_the_first_update(sampler: GaussianSpec) -> None:
    ppo, rollout, advantage = tiny(sampler, moved=0.0, spec={"network": NETWORKS[sampler.kind][0]})
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), torch.arange(T * N), Minibatch.pair))
    assert losses.ratio_deviation < 1e-12
    assert losses.kl < 1e-15
    assert losses.clip_fraction == 0


def test_the_mixture_has_a_gradient_where_the_released_clamp_has_none() -> None:
    """28 numbers at a deviation of 0.1: log p of a chunk is far above 2, so clamping the sum to [-5, 2] kills it."""
    spec = {"network": GMMMLPSpec(hidden=(8, 8, 8), modes=5), "horizon": 14, "executed": 14}
    ppo, rollout, advantage = tiny(GaussianSpec(kind="gmm"), moved=0.001, spec=spec)
    batch = ppo._gather(ppo._flatten(rollout, advantage), torch.arange(T * N), Minibatch.pair)
    weights = list(ppo.policy.network.parameters())
    numbers = ppo.policy.log_prob(ppo.policy.encode(batch.observation), batch.x, batch.x_next, batch.k)
    assert numbers[0].numel() == 28
    whole = numbers.sum((1, 2))
    assert (whole > 2).all()
    released = torch.autograd.grad((batch.A * whole.clamp(-5, 2).exp()).mean(), weights, retain_graph=True)
    assert not any(g.any() for g in released)
    gradient = torch.autograd.grad(ppo.losses(batch).policy, weights)
    assert sum(g.square().sum() for g in gradient).sqrt() > 1e-3
