"""Keyed randomness, shuffles, intervals with their coverage, learning rate and averaged weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from torch import nn

from d2ppo_core.conf.schema import Config, Ema, PolicyConfig, ScheduleConfig, TrainConfig
from d2ppo_core.data.batches import KeyedBatches
from d2ppo_core.data.robomimic import Demonstrations
from d2ppo_core.dispersive import DispersiveLoss
from d2ppo_core.inference import Actor
from d2ppo_core.keyed import action_noise, generator, key
from d2ppo_core.network_specs import SamplerSpec
from d2ppo_core.optim import average_into, learning_rate, warmed_decay
from d2ppo_core.pretrain import Pretrainer
from d2ppo_core.pretrain_setup import policy_of
from d2ppo_core.statistics import paired_difference, wilson
from oracles import small_policy, small_spec

# --- keyed randomness -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 500)), min_size=1, max_size=6, unique=True),
    st.integers(0, 99),
    st.randoms(),
)
def test_noise_of_a_row_is_its_own(rows: list[tuple[int, int]], seed: int, random: object) -> None:
    """Alone, in any batch and in any order, an episode's chunk gets the same noise; other chunks get other noise."""
    shape = (6, 4, 7)
    together = action_noise(seed, [e for e, _ in rows], [c for _, c in rows], shape)
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    mixed = action_noise(seed, [rows[n][0] for n in shuffled], [rows[n][1] for n in shuffled], shape)
    for place, n in enumerate(shuffled):
        assert torch.equal(mixed[place], together[n])
        assert torch.equal(action_noise(seed, [rows[n][0]], [rows[n][1]], shape)[0], together[n])
        assert not torch.equal(action_noise(seed + 1, [rows[n][0]], [rows[n][1]], shape)[0], together[n])
    assert len({row.numpy().tobytes() for row in together}) == len(rows)


def test_noise_is_standard_normal_and_uncorrelated_between_rows() -> None:
    noise = action_noise(0, [7] * 2000, list(range(2000)), (5, 2, 2)).flatten(1).double()
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.var().item() == pytest.approx(1, abs=0.04)
    correlation = np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]
    assert abs(correlation) < 0.03
    assert np.abs(np.corrcoef(noise.T) - np.eye(20)).max() < 0.1


def test_keys_tell_their_parts_apart() -> None:
    """Types and boundaries matter: ("1", 2) is not (1, "2") nor (12,)."""
    assert len({key(1, 2), key("1", 2), key(1, "2"), key(12), key("12"), key(2, 1), key((1, 2).__repr__())}) == 7
    assert all(0 <= key(n) < 2**63 for n in range(100))
    assert key(3, "action", 4) == key(3, "action", 4)
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))


def test_an_actor_gives_the_same_chunk_in_any_batch() -> None:
    """The property that makes results independent of the number of environments; up to float rounding."""
    policy = small_policy(SamplerSpec(), double=False)
    actor, rng = Actor(policy, seed=1), np.random.default_rng(0)
    raw = {"a": rng.normal(size=(5, 1, 1)), "b": rng.normal(size=(5, 1, 2))}
    whole = actor.act(raw, [10, 11, 12, 13, 14], [0, 3, 0, 1, 2])
    for n, (episode, chunk) in enumerate(zip([10, 11, 12, 13, 14], [0, 3, 0, 1, 2], strict=True)):
        alone = actor.act({k: v[[n]] for k, v in raw.items()}, [episode], [chunk])
        np.testing.assert_allclose(alone[0], whole[n], atol=1e-4)
        assert np.abs(actor.act({k: v[[n]] for k, v in raw.items()}, [episode], [chunk + 1])[0] - whole[n]).max() > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 5))
def test_an_epoch_draws_each_window_at_most_once_and_drops_only_the_rest(count: int, batch: int, seed: int) -> None:
    batches, used = KeyedBatches(count, batch, seed), min(batch, count)
    orders = []
    for epoch in range(3):
        drawn = torch.cat([batches(epoch * batches.per_epoch + n) for n in range(batches.per_epoch)])
        assert len(drawn) == count // used * used
        assert len(set(drawn.tolist())) == len(drawn)
        assert all(0 <= n < count for n in drawn.tolist())
        orders.append(drawn.tolist())
    if len(orders[0]) > 20:
        assert orders[0] != orders[1] != orders[2]
    jumped = KeyedBatches(count, batch, seed)  # a resumed run starts anywhere
    assert torch.equal(jumped(2 * batches.per_epoch), batches(2 * batches.per_epoch))


# --- error bars -------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99])
)
def test_wilson_equals_scipy(counts: tuple[int, int], confidence: float) -> None:
    successes, episodes = counts
    got, expected = (
        wilson(successes, episodes, confidence),
        binomtest(successes, episodes).proportion_ci(confidence, method="wilson"),
    )
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert got.value == successes / episodes


def test_paired_difference_equals_the_wald_interval_of_the_padded_table() -> None:
    """Agresti & Min (2005): half a count in each cell of the table, then the multinomial variance of (b - c) / n."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 80))
        first, second = rng.random(n) < 0.5, rng.random(n) < 0.7
        table = np.array([[np.sum((first == i) & (second == j)) for j in (0, 1)] for i in (0, 1)]) + 0.5
        p = table / table.sum()
        difference = p[0, 1] - p[1, 0]
        variance = (p[0, 1] * (1 - p[0, 1]) + p[1, 0] * (1 - p[1, 0]) + 2 * p[0, 1] * p[1, 0]) / table.sum()
        half = norm.ppf(0.975) * math.sqrt(variance)
        got = paired_difference(first.tolist(), second.tolist())
        assert (got.low, got.high) == pytest.approx((max(-1, difference - half), min(1, difference + half)), abs=1e-12)
        assert got.value == pytest.approx(second.mean() - first.mean())
    same = paired_difference([True] * 20, [True] * 20)
    assert same.value == 0
    assert same.low < 0 < same.high
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([True], [True, False])


@pytest.mark.parametrize(
    ("n", "both", "only_first", "only_second"),
    [(50, 0.5, 0.1, 0.25), (100, 0.8, 0.02, 0.08), (200, 0.3, 0.2, 0.2), (50, 0.0, 0.05, 0.6)],
)
def test_intervals_cover_the_truth(n: int, both: float, only_first: float, only_second: float) -> None:
    """4000 simulated comparisons: the 95 % intervals hold the true value in at least 93 % of them."""
    rng, runs = np.random.default_rng(0), 4000
    draws = rng.choice(4, size=(runs, n), p=[both, only_first, only_second, 1 - both - only_first - only_second])
    hits, hits_single, truth = 0, 0, only_second - only_first
    cache: dict[tuple[int, ...], tuple[bool, bool]] = {}
    for row in draws:
        counts = tuple(np.bincount(row, minlength=4).tolist())
        if counts not in cache:
            first, second = np.isin(row, (0, 1)).tolist(), np.isin(row, (0, 2)).tolist()
            paired, single = paired_difference(first, second), wilson(sum(second), n)
            cache[counts] = (paired.low <= truth <= paired.high, single.low <= both + only_second <= single.high)
        hits += cache[counts][0]
        hits_single += cache[counts][1]
    assert hits / runs >= 0.93
    assert hits_single / runs >= 0.93


# --- learning rate ----------------------------------------------------------------------------------------------------


def reference_rate(s: int, cycle: int, warmup: int, high: float, low: float) -> float:
    s %= cycle
    if s < warmup:
        return low + (high - low) * s / warmup
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (s - warmup) / (cycle - warmup)))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.integers(0, 100), st.integers(0, 1000))
def test_learning_rate_equals_the_formula(cycle: int, warmup: int, unit: int) -> None:
    """Warm-up from the minimum, cosine to it, restart; cycle 0 means the whole run."""
    warmup = min(warmup, cycle - 1)
    schedule = ScheduleConfig(lr=1e-3, lr_min=1e-5, warmup=warmup, cycle=cycle)
    assert learning_rate(unit, schedule, 77) == pytest.approx(
        reference_rate(unit, cycle, warmup, 1e-3, 1e-5), rel=1e-12
    )
    whole = ScheduleConfig(lr=1e-3, lr_min=1e-5, warmup=warmup, cycle=0)
    assert learning_rate(unit, whole, cycle) == learning_rate(unit, schedule, 77)


def test_learning_rate_at_the_marks() -> None:
    schedule = ScheduleConfig(lr=1e-4, lr_min=1e-5, warmup=100, cycle=8000)
    got = [learning_rate(s, schedule, 8000) for s in (0, 50, 100, 4050, 7999, 8000)]
    np.testing.assert_allclose(got, [1e-5, 5.5e-5, 1e-4, 5.5e-5, 1e-5, 1e-5], rtol=1e-5)


# --- averaged weights -------------------------------------------------------------------------------------------------


def test_average_and_its_warm_up_by_hand() -> None:
    ema, network = nn.Linear(2, 1), nn.Linear(2, 1)
    expected = 0.9 * ema.weight.detach().numpy() + 0.1 * network.weight.detach().numpy()
    before = copy.deepcopy(network.state_dict())
    average_into(ema, network, 0.9)
    np.testing.assert_allclose(ema.weight.detach(), expected, atol=1e-7)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert [warmed_decay(0.995, n) for n in (0, 90)] == [0.1, 0.91]
    assert warmed_decay(0.995, 10**6) == 0.995


def trainer(ema: Ema, windows: int = 8, batch: int = 4, **train: object) -> Pretrainer:
    """A tiny pre-training run: `windows` / `batch` steps are an epoch."""
    rng, spec = np.random.default_rng(0), small_spec(SamplerSpec())
    states = [rng.normal(size=(windows, 3)).astype(np.float32)]
    actions = [rng.uniform(-1, 1, (windows, 2)).astype(np.float32)]
    demos = Demonstrations(Path("none"), "", spec.provenance.simulator, states, actions)  # type: ignore[arg-type]
    config = Config(
        ema=ema, policy=PolicyConfig(horizon=3), train=TrainConfig(steps=100, batch=batch, holdout=0.0, **train)
    )  # type: ignore[arg-type]
    config.train.optimiser = ScheduleConfig(lr=1e-2, lr_min=1e-2)
    return Pretrainer(
        config, policy_of(config, demos, spec), demos, DispersiveLoss(config.dispersive), torch.device("cpu")
    )


def first_weight(module: nn.Module) -> np.ndarray:
    return next(iter(module.parameters())).detach().numpy().astype(np.float64).copy()


def test_ema_by_step_follows_every_gradient_step() -> None:
    run = trainer(Ema.step, ema_decay=0.5)
    average = first_weight(run.ema)
    for step in range(12):
        run.train_step(step, log=False)
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * first_weight(run.policy.network)
        np.testing.assert_allclose(first_weight(run.ema), average, atol=1e-6)


def test_ema_by_epoch_copies_before_its_start_and_then_averages_every_few_epochs() -> None:
    """Epochs count from 1: with start 4 and every 2, epochs 1 to 3 copy, 4 averages, 5 nothing, 6 averages, ..."""
    run = trainer(Ema.epoch, ema_decay=0.5, ema_start_epoch=4, ema_every_epochs=2)
    average = first_weight(run.ema)
    assert run.batches.per_epoch == 2
    for step in range(18):
        run.train_step(step, log=False)
        epoch, last_of_epoch = step // 2 + 1, step % 2 == 1
        if last_of_epoch and epoch < 4:
            average = first_weight(run.policy.network)
        elif last_of_epoch and epoch % 2 == 0:
            average = 0.5 * average + 0.5 * first_weight(run.policy.network)
        np.testing.assert_allclose(first_weight(run.ema), average, atol=1e-6, err_msg=f"epoch {epoch}")


def test_a_pretraining_step_descends_the_sum_of_both_losses() -> None:
    """AdamW by hand on diffusion + lambda * dispersive; decoupled decay, learning rate of this step."""
    run = trainer(Ema.step, windows=8, batch=8, weight_decay=0.1)
    run.config.dispersive.weight = 0.7
    reference = copy.deepcopy(run.policy)
    seen, x0 = run.windows.gather(run.batches(0))
    draw = generator(run.config.seed, "diffusion", 0)
    t = torch.randint(20, (8,), generator=draw)
    epsilon = torch.randn(x0.shape, generator=draw)
    terms = reference.loss(seen, x0, (t, epsilon), run.dispersive)
    gradients = torch.autograd.grad(terms.imitation + 0.7 * terms.dispersive, list(reference.network.parameters()))
    run.train_step(0, log=False)
    for old, new, g in zip(reference.network.parameters(), run.policy.network.parameters(), gradients, strict=True):
        expected = old * (1 - 1e-2 * 0.1) - 1e-2 * g / (g.abs() + 1e-8)  # Adam's first step is lr * sign(g)
        np.testing.assert_allclose(new.detach(), expected.detach(), atol=2e-4)
    assert run.train_step(1, log=True)["train/lr"] == pytest.approx(1e-2)
