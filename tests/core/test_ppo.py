"""PPO through the denoising chain: every loss term and gradient against a float64 NumPy reading of the DPPO paper."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from d2ppo_core.conf.schema import AlgorithmConfig, Minibatch
from d2ppo_core.contract import SamplerSpec
from d2ppo_core.networks.critics import StateCritic
from d2ppo_core.policies.diffusion import DiffusionPolicy
from d2ppo_core.rl.ppo import PPO, chunk_log_prob, clip_schedule, denoising_weights
from d2ppo_core.rl.rollout import Rollout
from oracles import Weights, denoise, denoise_mean, diffusion_mlp, log_normal, residual_trunk, small_policy, weights_of

Array = np.ndarray
DDPM = SamplerSpec(train_steps=6, steps=6, finetuned_steps=4)
DDIM = SamplerSpec(kind="ddim", train_steps=20, steps=5, finetuned_steps=5, min_sampling_std=0.15, min_logprob_std=0.2)
HALF = SamplerSpec(kind="ddim", train_steps=20, steps=4, finetuned_steps=2, eta=0.6)
T, N = 4, 3


def tiny(sampler: SamplerSpec, moved: float = 0.05, **config: Any) -> tuple[PPO, Rollout, torch.Tensor]:
    """A rollout of random states by the policy itself, and PPO on a network that has moved since by `moved`."""
    policy = small_policy(sampler)
    policy.freeze_base()
    draw = torch.Generator().manual_seed(1)
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    state, noise = normal(T * N, 1, 3), normal(T * N, sampler.steps + 1, 3, 2)
    sample = policy.sample(state, noise, explore=True)
    torch.manual_seed(3)
    critic = StateCritic(3, (8, 8, 8)).double()
    with torch.no_grad():
        for p in policy.network.parameters():
            p.add_(moved * torch.randn(p.shape, generator=draw, dtype=torch.float64))
        value = critic(policy.condition(state)) + 0.3 * normal(T * N)
    ppo = PPO(policy, critic, AlgorithmConfig(**({"clip": 0.05, "clip_base": 0.01, "batch": 16} | config)))
    ppo.clip, ppo.weight = ppo.clip.double(), ppo.weight.double()
    def rows(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (T, N))

    flags = [np.zeros((T, N), dtype=bool)] * 4
    rollout = Rollout(rows(state), rows(sample.chain), rows(sample.log_prob), np.zeros((T, N)), *flags, rows(value), rows(value), rows(value), 0)
    return ppo, rollout, normal(T, N)


class Reference:
    """The losses of chosen (chunk, k) pairs, one at a time, from weights alone."""

    def __init__(self, ppo: PPO, rollout: Rollout, advantage: torch.Tensor, pairs: list[tuple[int, int]]) -> None:
        self.s, self.c, self.net = ppo.policy.spec.sampler, ppo.config, ppo.policy.spec.network
        self.pairs, self.executed = pairs, ppo.policy.spec.executed
        self.state = rollout.state.flatten(0, 1)[:, 0].numpy()
        self.chain, self.old = rollout.chain.flatten(0, 1).numpy(), rollout.log_prob.flatten(0, 1).numpy()
        self.A, self.V = advantage.flatten().numpy(), rollout.value.flatten().numpy()

    def log_prob(self, w: Weights, state: Array, x: Array, x_next: Array, k: int) -> float:
        """Mean over the executed steps of the clamped element-wise density of fine-tuned step k."""
        i = self.s.steps - self.s.finetuned_steps + k
        def predict(x: Array, t: int) -> Array:
            return diffusion_mlp(w, self.net, x, np.array([t]), state[None])[0]

        _, mean, sigma = denoise_mean(self.s, self.s.eta, i, x[None], predict)
        return self.mean(log_normal(x_next[None], mean, max(sigma, self.s.min_logprob_std))[0])

    def mean(self, element_wise: Array) -> float:
        steps = self.c.reward_horizon or self.executed
        return float(np.clip(element_wise[:steps], self.c.logprob_min, self.c.logprob_max).mean())

    def losses(self, actor: Weights, critic: Weights, bc_chains: Array | None = None) -> dict[str, float]:
        c, K = self.c, self.s.finetuned_steps
        A = np.array([self.A[b] for b, _ in self.pairs])
        if c.normalise_advantage:
            A = (A - A.mean()) / (A.std(ddof=1) + 1e-8)
        A = np.clip(A, np.quantile(A, c.advantage_clip_low), np.quantile(A, c.advantage_clip_high))
        policy, value, kl, clipped = [], [], [], []
        for (b, k), a in zip(self.pairs, A, strict=True):
            a_k = a * c.denoising_discount ** (K - 1 - k)
            u = k / (K - 1)
            epsilon = c.clip_base + (c.clip - c.clip_base) * (math.exp(c.clip_rate * u) - 1) / (math.exp(c.clip_rate) - 1)
            log_ratio = self.log_prob(actor, self.state[b], self.chain[b, k], self.chain[b, k + 1], k) - self.mean(self.old[b, k])
            ratio = math.exp(log_ratio)
            policy.append(max(-a_k * ratio, -a_k * min(max(ratio, 1 - epsilon), 1 + epsilon)))
            clipped.append(abs(ratio - 1) > epsilon)
            numbers = log_ratio * ((c.reward_horizon or self.executed) * 2 if c.kl_per == "chunk" else 1)
            kl.append(math.exp(numbers) - 1 - numbers)
            v, target = residual_trunk(critic, "trunk", self.state[b][None], 1, "mish", False)[0][0, 0], self.A[b] + self.V[b]
            error = (v - target) ** 2
            if c.value_clip:
                error = max(error, (self.V[b] + np.clip(v - self.V[b], -c.value_clip, c.value_clip) - target) ** 2)
            value.append(0.5 * error)
        bc = 0.0
        if bc_chains is not None:
            bc = -float(np.mean([self.log_prob(actor, self.state[b], chain[k], chain[k + 1], k)
                                 for (b, _), chain in zip(self.pairs, bc_chains, strict=True) for k in range(K)]))
        mean = {"policy": np.mean(policy), "value": np.mean(value), "bc": bc, "kl": np.mean(kl), "clip_fraction": np.mean(clipped)}
        total = mean["policy"] + c.value_coef * mean["value"] + c.bc_coef * bc - c.entropy_coef * self.s.eta
        return {k: float(v) for k, v in mean.items()} | {"total": float(total)}


def chosen(mode: Minibatch, K: int) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Some units of the minibatch, and the (chunk, k) pairs they must mean."""
    if mode is Minibatch.chain:
        return torch.tensor([7, 0, 4, 11]), [(b, k) for b in (7, 0, 4, 11) for k in range(K)]
    pairs = [(0, 0), (3, K - 1), (11, 1), (5, 0), (5, 1), (2, K - 1), (8, 0), (9, K - 1), (1, 1), (10, 0)]
    return torch.tensor([b * K + k for b, k in pairs]), pairs


OPTIONS = {
    "plain": {}, "raw advantage, no discount": {"normalise_advantage": False, "denoising_discount": 1.0},
    "quantiles": {"advantage_clip_low": 0.1, "advantage_clip_high": 0.8, "denoising_discount": 0.7},
    "value clip": {"value_clip": 0.1, "value_coef": 2.0}, "entropy": {"entropy_coef": 0.3},
    "wide": {"clip": 10.0, "clip_base": 10.0}, "horizon": {"reward_horizon": 3, "kl_per": "dimension"}, "cut": {"logprob_min": -0.5, "logprob_max": 0.9},
}


@pytest.mark.parametrize("mode", list(Minibatch))
@pytest.mark.parametrize(("sampler", "options"), [(DDPM, o) for o in OPTIONS] + [(DDIM, "plain"), (HALF, "plain"), (DDIM, "cut"), (HALF, "quantiles")],
                         ids=lambda v: v if isinstance(v, str) else v.kind + str(v.steps))
def test_losses_and_gradients_equal_the_reference(sampler: SamplerSpec, options: str, mode: Minibatch) -> None:
    """Values; and for each parameter tensor of actor and critic the derivative along a random direction."""
    ppo, rollout, advantage = tiny(sampler, **OPTIONS[options])
    index, pairs = chosen(mode, sampler.finetuned_steps)
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), index, mode))
    reference = Reference(ppo, rollout, advantage, pairs)
    actor, critic = weights_of(ppo.policy.network), weights_of(ppo.critic)
    expected = reference.losses(actor, critic)
    got = {"policy": losses.policy.item(), "value": losses.value.item(), "bc": losses.bc.item(), "kl": losses.kl,
           "clip_fraction": losses.clip_fraction, "total": losses.total.item()}
    assert got == pytest.approx(expected, abs=2e-6, rel=2e-5)
    assert (0 < expected["clip_fraction"] < 1) == (options != "wide")
    losses.total.backward()
    check_gradient(reference, {"actor": actor, "critic": critic}, {"actor": ppo.policy.network, "critic": ppo.critic})


def check_gradient(reference: Reference, weights: dict[str, Weights], modules: dict[str, torch.nn.Module], **more: Any) -> None:
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


@pytest.mark.parametrize("mode", list(Minibatch))
def test_behaviour_cloning_term(mode: Minibatch) -> None:
    """Chains of the frozen pre-trained network from given noise, their log-probability under the trained one."""
    ppo, rollout, advantage = tiny(HALF, bc_coef=0.4, kl_per="dimension")
    index, pairs = chosen(mode, 2)
    noise = torch.randn(len(pairs), 5, 3, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), index, mode), noise)
    reference, base, spec = Reference(ppo, rollout, advantage, pairs), weights_of(ppo.policy.base), ppo.policy.spec  # type: ignore[arg-type]
    state = reference.state[[b for b, _ in pairs]]
    loop = denoise(HALF, True, noise.numpy(), lambda x, t: diffusion_mlp(base, spec.network, x, np.full(len(x), t), state)[0])
    chains = np.stack(loop.x[2:], 1)
    actor, critic = weights_of(ppo.policy.network), weights_of(ppo.critic)
    expected = reference.losses(actor, critic, chains)
    assert losses.bc.item() == pytest.approx(expected["bc"], abs=1e-4)
    assert losses.total.item() == pytest.approx(expected["total"], abs=1e-4)
    losses.total.backward()
    check_gradient(reference, {"actor": actor, "critic": critic}, {"actor": ppo.policy.network}, bc_chains=chains)
    assert all(p.grad is None for p in ppo.policy.base.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(("K", "expected"), [
    (10, [.00100, .00119, .00145, .00181, .00232, .00303, .00401, .00539, .00732, .01000]),
    (5, [.001 + .009 * (math.exp(3 * u) - 1) / (math.exp(3) - 1) for u in (0, .25, .5, .75, 1)]), (1, [.01]),
])
def test_clip_schedule(K: int, expected: list[float]) -> None:
    """Published numbers: the noisiest step gets the base, the last the full clip; one step is no 0/0."""
    np.testing.assert_allclose(clip_schedule(K, .01, .001, 3), expected, atol=5.1e-6)
    np.testing.assert_allclose(clip_schedule(K, .02, .02, 3), .02, atol=1e-9)
    linear = clip_schedule(K, .01, .001, 0)
    np.testing.assert_allclose(linear, np.linspace(.001, .01, K) if K > 1 else [.01], atol=1e-9)


def test_weights_discount_the_noisier_steps() -> None:
    np.testing.assert_allclose(denoising_weights(4, 0.9), [.729, .81, .9, 1], rtol=1e-6)


def test_chunk_log_prob_clamps_each_number_then_averages_the_executed_ones() -> None:
    x = torch.tensor([[[-9.0, 0.0], [3.0, 1.0], [100.0, 100.0]]])
    assert chunk_log_prob(x, 2, -5, 2).item() == pytest.approx((-5 + 0 + 2 + 1) / 4)
    assert chunk_log_prob(x, 3, -5, 2).item() == pytest.approx((-5 + 0 + 2 + 1 + 2 + 2) / 6)


@pytest.mark.parametrize("sampler", [DDPM, DDIM, HALF], ids=lambda s: s.kind + str(s.steps))
def test_recorded_log_prob_is_the_recomputed_and_the_brute_force_one(sampler: SamplerSpec) -> None:
    """What acting recorded equals `log_prob` with the same weights, and a Gaussian evaluated by hand."""
    ppo, rollout, advantage = tiny(sampler, moved=0.0)
    policy, K = ppo.policy, sampler.finetuned_steps
    state, chain = rollout.state.flatten(0, 1), rollout.chain.flatten(0, 1)
    w, first = weights_of(policy.network), sampler.steps - K
    for k in range(K):
        step = torch.full((T * N,), first + k)
        again = policy.log_prob(state, chain[:, k], chain[:, k + 1], step)
        torch.testing.assert_close(again, rollout.log_prob.flatten(0, 1)[:, k], rtol=0, atol=1e-10)
        _, mean, sigma = denoise_mean(sampler, sampler.eta, first + k, chain[:, k].numpy(),
                                      lambda x, t: diffusion_mlp(w, policy.spec.network, x, np.full(len(x), t), state[:, 0].numpy())[0])
        expected = log_normal(chain[:, k + 1].numpy(), mean, max(sigma, sampler.min_logprob_std))
        np.testing.assert_allclose(again.detach(), expected, atol=5e-4)
    losses = ppo.losses(ppo._gather(ppo._flatten(rollout, advantage), torch.arange(T * N * K), Minibatch.pair))
    assert losses.ratio_deviation < 1e-9
    assert losses.kl < 1e-12


# --- the update ---------------------------------------------------------------------------------------------------------


def spy(ppo: PPO) -> list[Any]:
    """Records every minibatch that the update draws."""
    seen: list[Any] = []
    real = ppo.losses
    ppo.losses = lambda batch, noise=None: (seen.append(batch), real(batch, noise))[1]  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(("mode", "batch", "steps"), [(Minibatch.pair, 16, 3), (Minibatch.chain, 4, 3), (Minibatch.pair, 10**6, 1)])
def test_every_pair_is_drawn_exactly_once_an_epoch(mode: Minibatch, batch: int, steps: int) -> None:
    """12 chunks of 4 fine-tuned steps; another order in each epoch; old log-probability and advantage stay with their pair."""
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
                assert torch.equal(drawn.state[row], rollout.state[n])
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


@pytest.mark.parametrize(("target", "train_actor", "steps"), [(1e-9, True, 1), (1e9, True, 6), (0.0, True, 6), (1e-9, False, 6)])
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
        gradients = {part: torch.autograd.grad(loss, list(m.parameters()), retain_graph=True) for part, (m, _) in modules.items()}
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
        ppo._step(loss, train_actor=True)
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
    before = policy.sample(state, noise, explore).chain
    shaken(policy.network)
    changed = policy.sample(state, noise, explore).chain
    assert torch.equal(changed[:, 0], before[:, 0])  # the steps before are the base's
    assert not torch.equal(changed[:, 1], before[:, 1])
    shaken(policy.base)  # type: ignore[arg-type]
    both = policy.sample(state, noise, explore).chain
    assert not torch.equal(both[:, 0], changed[:, 0])
    base, net = weights_of(policy.base), weights_of(policy.network)  # type: ignore[arg-type]
    stride = sampler.train_steps // S

    def predict(x: Array, t: int) -> Array:
        i = S - 1 - t // stride
        return diffusion_mlp(base if i < first else net, policy.spec.network, x, np.full(len(x), t), state[:, 0].numpy())[0]

    np.testing.assert_allclose(both, np.stack(denoise(sampler, explore, noise.numpy(), predict).x[first:], 1), atol=1e-3)


def test_a_policy_fine_tuned_everywhere_never_asks_its_base() -> None:
    policy: DiffusionPolicy = small_policy(DDIM)
    policy.freeze_base()
    state, noise = torch.randn(4, 1, 3).double(), torch.randn(4, 6, 3, 2).double()
    before = policy.sample(state, noise, True)
    assert torch.equal(before.chain[:, 0], noise[:, 0])  # K' = S: the initial noise is stored
    shaken(policy.base)  # type: ignore[arg-type]
    assert torch.equal(policy.sample(state, noise, True).chain, before.chain)
    trained = weights_of(policy.network)
    chain = policy.sample_base(state, noise)
    assert not torch.equal(chain, before.chain)
    assert all(np.array_equal(v, trained[k]) for k, v in weights_of(policy.network).items())  # swapped back
