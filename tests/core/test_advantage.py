"""Advantages at terminations, time-outs and the window's end, what the rollout hands them, and the reward scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from d2ppo_core.conf.schema import AlgorithmConfig, Config, Truncation
from d2ppo_core.envs import Step
from d2ppo_core.inference import Actor
from d2ppo_core.network_specs import SamplerSpec
from d2ppo_core.observation import Observation
from d2ppo_core.rl.advantage import RewardScaler, gae
from d2ppo_core.rl.finetune import Finetuner
from d2ppo_core.rl.rollout import Collector, Rollout
from oracles import small_policy

Array = np.ndarray


def lambda_return_advantage(
    reward: Array, value: Array, next_value: Array, terminated: Array, ended: Array, gamma: float, lam: float
) -> Array:
    """One environment, from the definition: the lambda-weighted mean of the n-step returns in the segment, minus V."""
    T, out = len(reward), np.zeros(len(reward))
    for t in range(T):
        last = t  # the last row of this segment: where the episode ends, or the window does
        while last < T - 1 and not ended[last]:
            last += 1
        N, total, returns = last - t + 1, 0.0, []
        for n in range(1, N + 1):
            total += gamma ** (n - 1) * reward[t + n - 1]
            returns.append(total + gamma**n * next_value[t + n - 1] * (not terminated[t + n - 1]))
        mixed = sum((1 - lam) * lam ** (n - 1) * returns[n - 1] for n in range(1, N)) + lam ** (N - 1) * returns[N - 1]
        out[t] = mixed - value[t]
    return out


def episodes(seed: int, T: int, N: int, how_often: float) -> dict[str, Array]:
    """Random experience with random ends; V is consistent: inside an episode next_value[t] is value[t + 1]."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, size=(T, N), p=[1 - how_often, how_often / 2, how_often / 2])
    e = {
        "reward": rng.normal(size=(T, N)),
        "value": rng.normal(size=(T, N)),
        "terminated": kind == 1,
        "truncated": kind == 2,
        "next_value": rng.normal(size=(T, N)),
        "window": rng.normal(size=N),
    }
    running = ~(e["terminated"] | e["truncated"])
    e["next_value"][:-1][running[:-1]] = e["value"][1:][running[:-1]]
    e["next_value"][-1][running[-1]] = e["window"][running[-1]]
    e["reset_value"] = np.concatenate([e["value"][1:], e["window"][None]])
    return e


def tensors(*arrays: Array) -> list[torch.Tensor]:
    return [torch.tensor(np.asarray(a, dtype=np.float64)) for a in arrays]


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        (
            0,
            0,
            [1 + 0.9 * 4 - 2 + 0.9 * 0.5 * (10 + 0.9 * 7 - 4), 10 + 0.9 * 7 - 4],
        ),  # running on; the window's end bootstraps
        (1, 0, [1 - 2, 10 + 0.9 * 7 - 4]),  # terminated: nothing follows
        (0, 1, [1 + 0.9 * 30 - 2, 10 + 0.9 * 7 - 4]),  # truncated: the final observation's value (30), and a cut
    ],
)
def test_the_four_cases_by_hand(terminated: int, truncated: int, expected: list[float]) -> None:
    """gamma 0.9, lambda 0.5, two rows: r = 1, 10; V = 2, 4; V after the window 7."""
    next_value = [[30.0 if truncated else 4.0], [7.0]]
    got = gae(
        *tensors([[1.0], [10.0]], [[2.0], [4.0]], next_value, [[terminated], [0]], [[terminated or truncated], [0]]),
        0.9,
        0.5,
    )
    np.testing.assert_allclose(got[:, 0], expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.floats(0, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_lambda_return(seed: int, T: int, how_often: float, gamma: float, lam: float) -> None:
    """Random interleavings of running, terminated and truncated in several environments."""
    e = episodes(seed, T, 3, how_often)
    ended = e["terminated"] | e["truncated"]
    got = gae(*tensors(e["reward"], e["value"], e["next_value"], e["terminated"], ended), gamma, lam).numpy()
    for n in range(3):
        expected = lambda_return_advantage(
            *(e[k][:, n] for k in ("reward", "value", "next_value", "terminated")), ended[:, n], gamma, lam
        )
        np.testing.assert_allclose(got[:, n], expected, atol=1e-9)


def wired(truncation: Truncation, e: dict[str, Array], **algorithm: object) -> Array:
    """`Finetuner._advantage` on this experience, without a simulator."""
    options = AlgorithmConfig(discount=0.97, gae_lambda=0.8, **({"reward_scaling": False} | algorithm))  # type: ignore[arg-type]
    tuner = object.__new__(Finetuner)
    tuner.config, tuner.algorithm, tuner.scaler = (
        Config(truncation=truncation, algorithm=options),
        options,
        RewardScaler(3),
    )
    v = {k: torch.tensor(e[k], dtype=torch.float32) for k in ("value", "next_value", "reset_value")}
    first = np.zeros_like(e["terminated"])
    r = Rollout(
        Observation(torch.empty(0)),
        torch.empty(0),
        torch.empty(0),
        e["reward"],
        first,
        e["terminated"],
        e["truncated"],
        first,
        **v,
        control_steps=0,
    )
    return tuner._advantage(r).numpy()


@pytest.mark.parametrize("seed", range(8))
def test_truncation_options(seed: int) -> None:
    """bootstrap: V of the final state and a cut. terminal: as a termination. leak: the next episode's V, no cut."""
    e = episodes(seed, 15, 3, 0.4)
    ended = e["terminated"] | e["truncated"]
    for n in range(3):
        reward, value, own, leaked = (e[k][:, n] for k in ("reward", "value", "next_value", "reset_value"))
        term, end = e["terminated"][:, n], ended[:, n]
        for option, expected in (
            (Truncation.bootstrap, lambda_return_advantage(reward, value, own, term, end, 0.97, 0.8)),
            (Truncation.terminal, lambda_return_advantage(reward, value, own, end, end, 0.97, 0.8)),
            (Truncation.leak, lambda_return_advantage(reward, value, leaked, term, term, 0.97, 0.8)),
        ):
            np.testing.assert_allclose(wired(option, e)[:, n], expected, atol=2e-5, err_msg=str(option))


def test_reward_constant_multiplies_and_scaling_divides() -> None:
    e = episodes(0, 15, 3, 0.3)
    e["value"][:], e["next_value"][:] = 0, 0
    plain = wired(Truncation.bootstrap, e)
    np.testing.assert_allclose(wired(Truncation.bootstrap, e, reward_const=2.5), 2.5 * plain, rtol=1e-5)
    ratio = wired(Truncation.bootstrap, e, reward_scaling=True) / plain
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)
    assert abs(ratio[0, 0] - 1) > 0.01


def test_reward_scaler_equals_a_recomputation_over_all_history() -> None:
    """Discounted returns run on across calls, restart where an episode does, and share one variance over everything."""
    rng, scaler, returns, running = np.random.default_rng(0), RewardScaler(4), [], np.zeros(4)
    for call in range(6):
        reward, first = 3 * rng.normal(size=(7, 4)), rng.random((7, 4)) < 0.2
        if call == 2:  # killed and resumed
            again = RewardScaler(4)
            again.restore(scaler.state())
            scaler = again
        scaled = scaler(reward, first)
        for t in range(7):
            for n in range(4):
                running[n] = reward[t, n] + (0.0 if first[t, n] else 0.99 * running[n])
            returns.append(running.copy())
        np.testing.assert_allclose(scaled, np.clip(reward / np.sqrt(np.var(returns) + 1e-8), -10, 10), rtol=1e-4)
    huge = scaler(np.full((1, 4), 1e6) * np.array([1, -1, 0, 0]), np.ones((1, 4)))
    assert np.abs(huge).max() <= 10


class Counting:
    """Two environments whose state is (environment, episode seed's last digits, step); ends are scripted by chunk."""

    num_envs, max_episode_steps = 2, 100

    def __init__(self, ends: dict[tuple[int, int], str]) -> None:
        self.ends, self.calls, self.seeds = ends, 0, {0: 0, 1: 0}
        self.count = np.zeros(2)

    def _observe(self, envs: list[int]) -> dict[str, Array]:
        return {
            "a": np.array([[[float(e)]] for e in envs]),
            "b": np.array([[[self.seeds[e] % 1009 / 1009, self.count[e]]] for e in envs]),
        }

    def reset(self, envs: list[int], seeds: list[int]) -> dict[str, Array]:
        for e, seed in zip(envs, seeds, strict=True):
            self.seeds[e], self.count[e] = seed, 0
        return self._observe(list(envs))

    def step(self, envs: list[int], chunks: Array) -> Step:
        self.count += 1
        kind = [self.ends.get((self.calls, e), "") for e in envs]
        self.calls += 1
        flag = {k: np.array([x == k for x in kind]) for k in ("terminated", "truncated")}
        return Step(
            self._observe(list(envs)),
            np.arange(2) + self.calls / 10,
            **flag,
            success=flag["terminated"],
            control_steps=np.array([2, 1]),
        )


class Readout(nn.Module):
    """V(s) = 100 environment + 10 step + episode: every value says which state it is of."""

    def forward(self, state: torch.Tensor, images: None) -> torch.Tensor:
        return state @ torch.tensor([100.0, 1.0, 10.0])


def test_rollout_tells_final_states_from_first_ones() -> None:
    """next_value is V of the final observation, reset_value V of the next episode's first; chunk numbers restart."""
    policy = small_policy(SamplerSpec(kind="ddim", steps=2, finetuned_steps=2), double=False)
    env = Counting({(1, 0): "truncated", (2, 1): "terminated", (4, 1): "truncated"})
    collector = Collector(Actor(policy, 5, explore=True), Readout(), env, 5, seed=5)  # type: ignore[arg-type]
    collector.reset(3)
    r = collector.collect(3)
    step = r.observation.state[:, :, 0, 2].numpy()
    np.testing.assert_array_equal(step, [[0, 0], [1, 1], [0, 2], [1, 0], [2, 1]])
    np.testing.assert_array_equal(r.first, step == 0)
    episode = r.observation.state[:, :, 0, 1].numpy()
    env_index = np.array([[0, 100]] * 5)
    np.testing.assert_allclose(r.value, env_index + episode + 10 * step, rtol=1e-5)
    np.testing.assert_allclose(r.next_value, env_index + episode + 10 * (step + 1), rtol=1e-5)
    np.testing.assert_allclose(r.reset_value[:-1], r.value[1:])
    assert r.reset_value[-1, 0].item() == pytest.approx(r.next_value[-1, 0].item())  # running on: the same state
    assert r.reset_value[-1, 1].item() == pytest.approx(100 + env.seeds[1] % 1009 / 1009, rel=1e-5)
    assert len(set(episode.ravel())) == 5 - 1  # two episodes in environment 0, two seen in environment 1
    np.testing.assert_allclose(r.reward[:, 0], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert r.control_steps == 5 * 3
    assert r.finished_successes() == [False, True, False]
    assert min(env.seeds.values()) >= 2**32  # evaluation's seeds are below


def test_environments_see_only_the_executed_steps_in_raw_units() -> None:
    policy = small_policy(SamplerSpec(kind="ddim", steps=2, finetuned_steps=2), double=False)
    policy.normalizer.action_min.copy_(torch.tensor([0.0, -0.2]))
    policy.normalizer.action_max.copy_(torch.tensor([0.5, 0.3]))
    seen: list[Array] = []
    env = Counting({})
    step = env.step
    env.step = lambda envs, chunks: (seen.append(chunks), step(envs, chunks))[1]  # type: ignore[method-assign]
    collector = Collector(Actor(policy, 5, explore=True), Readout(), env, 1, seed=5)  # type: ignore[arg-type]
    collector.reset(0)
    x = collector.collect(0).chain[0, :, -1, :2].numpy()
    raw = (x + 1) / 2 * np.array([0.5, 0.5]) + np.array([0.0, -0.2])
    np.testing.assert_allclose(seen[0], np.clip(raw, -1, 1), atol=1e-6)
    assert seen[0].shape == (2, 2, 2)
