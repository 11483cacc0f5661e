"""Real-time chunking: what is frozen stays, what overlaps is held near the running chunk, what is free is free."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from d2ppo_core.diffusion.guide import Guide, rtc_weights
from d2ppo_core.errors import UserError
from d2ppo_core.inference import Actor
from d2ppo_core.network_specs import GaussianMLPSpec, GaussianSpec, GMMMLPSpec, MLPSpec, SamplerSpec
from d2ppo_core.networks.encoder import Network, StateEncoder
from d2ppo_core.observation import Observation
from oracles import Array, alpha_bars, diffusion_mlp, small_policy, weights_of

SAMPLERS = [
    SamplerSpec(),
    SamplerSpec(finetuned_steps=7),
    SamplerSpec(kind="ddim", train_steps=100, steps=5, finetuned_steps=5),
    SamplerSpec(kind="ddim", steps=4, finetuned_steps=2, eta=0.4),
]
EVERY = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.kind}-{s.steps}-{s.finetuned_steps}")
BOTH = pytest.mark.parametrize("explore", [True, False])
H, FROZEN, HELD = 8, 2, 6  # steps predicted, executed meanwhile, left in the running chunk
RAW = {"a": np.array([[[0.3]]]), "b": np.array([[[-0.2, 0.7]]])}


def guide(rows: int = 5, dtype: torch.dtype = torch.float32) -> Guide:
    chunk = torch.rand(rows, H, 2, generator=torch.Generator().manual_seed(7), dtype=dtype) - 0.5
    return Guide(chunk, torch.tensor(rtc_weights(H, FROZEN, HELD), dtype=dtype))


def drawn(policy, rows: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Observation, Tensor]:
    draw = torch.Generator().manual_seed(1)
    seen = Observation(torch.randn(rows, 1, 3, generator=draw, dtype=dtype))
    return seen, torch.randn(rows, *policy.noise_shape, generator=draw, dtype=dtype)


# --- weights ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.data())
def test_weights_fall_from_one_to_zero(horizon: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, horizon))
    frozen = data.draw(st.integers(0, overlap))
    weight = rtc_weights(horizon, frozen, overlap)
    assert (weight[:frozen] == 1).all() and (weight[overlap:] == 0).all()
    assert (weight[frozen:overlap] > 0).all() and (weight[frozen:overlap] < 1).all()
    assert (np.diff(weight[max(0, frozen - 1) : overlap]) < 0).all()
    for i in range(frozen, overlap):  # Eq. 5, with H - s the steps still held
        c = (overlap - i) / (overlap - frozen + 1)
        assert weight[i] == pytest.approx(c * (np.exp(c) - 1) / (np.e - 1))


@pytest.mark.parametrize(("frozen", "overlap"), [(-1, 3), (4, 3), (2, 9)])
def test_weights_that_fit_no_chunk_are_refused(frozen: int, overlap: int) -> None:
    with pytest.raises(UserError, match="do not fit a horizon of 8"):
        rtc_weights(H, frozen, overlap)


# --- the guided chain -------------------------------------------------------------------------------------------------


@BOTH
@EVERY
def test_frozen_steps_come_out_as_they_are_and_weight_zero_is_no_guide(sampler: SamplerSpec, explore: bool) -> None:
    """To the last bit: the robot is already executing them."""
    policy = small_policy(sampler, double=False, horizon=H)
    policy.freeze_base()
    seen, noise = drawn(policy)
    free, towards = policy.sample(seen, noise, explore), guide()
    held = policy.sample(seen, noise, explore, towards)
    assert torch.equal(held.chunk[:, :FROZEN], towards.chunk[:, :FROZEN])
    assert torch.equal(held.chain[:, -1], held.chunk)
    loose = policy.sample(seen, noise, explore, Guide(towards.chunk, torch.zeros(5, H)))
    torch.testing.assert_close(loose.chunk, free.chunk, rtol=0, atol=1e-6)
    tight = policy.sample(seen, noise, explore, Guide(towards.chunk, torch.ones(5, H)))
    assert torch.equal(tight.chunk, towards.chunk)


@EVERY
def test_the_last_step_of_acting_leaves_the_frozen_steps_alone(sampler: SamplerSpec) -> None:
    """Before they are put in exactly they differ by rounding only: A = 1 and B = 0 there, and no noise."""
    policy = small_policy(sampler, horizon=H)
    policy.freeze_base()
    _, noise = drawn(policy, dtype=torch.float64)
    frozen = guide(dtype=torch.float64)
    mean = policy.acting.mean_at(noise[:, 0], noise[:, 1], sampler.steps - 1, frozen)
    torch.testing.assert_close(mean[:, :FROZEN], frozen.chunk[:, :FROZEN], rtol=0, atol=1e-6)
    assert policy.acting.sampling_std()[-1] == 0


@BOTH
def test_a_guided_ddim_chain_equals_the_formulas(explore: bool) -> None:
    """In float64 NumPy: the estimate is clamped, then mixed; the noise of the mean belongs to the mixed one."""
    sampler, mlp = SamplerSpec(kind="ddim", steps=4, finetuned_steps=4, eta=0.4), MLPSpec(hidden=(8, 8, 8), time_size=4)
    policy, towards = small_policy(sampler, network=mlp, horizon=H), guide(dtype=torch.float64)
    seen, noise = drawn(policy, dtype=torch.float64)
    net, z, state, abar = weights_of(policy.network), noise.numpy(), seen.state[:, 0].numpy(), alpha_bars(20)
    x, w = z[:, 0], towards.weight.numpy()[:, None]
    for i, t in enumerate((15, 10, 5, 0)):
        now, before = abar[t], abar[t - 5] if t else 1.0
        epsilon, _ = diffusion_mlp(net, mlp, x, np.full(5, t), state)
        estimate = np.clip((x - np.sqrt(1 - now) * epsilon) / np.sqrt(now), -sampler.sample_clip, sampler.sample_clip)
        share = w * (1 - now) / (w * (1 - now) + 1 - w)
        estimate = (1 - share) * estimate + share * towards.chunk.numpy()
        sigma = 0.4 * explore * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        rest = (x - np.sqrt(now) * estimate) / np.sqrt(1 - now)
        x = np.sqrt(before) * estimate + np.sqrt(1 - before - sigma**2) * rest
        std = max(sigma, sampler.min_sampling_std) if explore else 0.0
        x = x + std * np.clip(z[:, i + 1], -sampler.noise_clip, sampler.noise_clip)
    x[:, :FROZEN] = towards.chunk[:, :FROZEN]
    np.testing.assert_allclose(policy.sample(seen, noise, explore, towards).chunk, x, rtol=0, atol=2e-5)


class Certain(Network):
    """Noise prediction of a policy that knows one chunk only, in closed form: the estimate is `wish` at every step."""

    def __init__(self, wish: Array, abar: Array) -> None:
        super().__init__((H, 2), StateEncoder(3, ()), None, 3, (), 1)
        self.wish, self.abar = torch.tensor(wish), torch.tensor(abar)

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        a = self.abar[t][:, None, None]
        return (x - a.sqrt() * self.wish) / (1 - a).sqrt(), {}


@EVERY
def test_a_policy_that_is_certain_is_led_no_further_than_its_last_step_allows(sampler: SamplerSpec) -> None:
    """What decides is how sure the estimate is when it is used: at the last step almost wholly."""
    policy, towards = small_policy(sampler.model_copy(update={"finetuned_steps": sampler.steps}), horizon=H), guide(1)
    towards = Guide(towards.chunk.double(), towards.weight.double())
    wish, abar = np.random.default_rng(0).uniform(-0.8, 0.8, (H, 2)), alpha_bars(sampler.train_steps)
    policy.network = Certain(wish, abar)
    seen, noise = drawn(policy, dtype=torch.float64)
    free, held = policy.sample(seen, noise, False).chunk, policy.sample(seen, noise, False, towards).chunk
    np.testing.assert_allclose(free, np.broadcast_to(wish, free.shape), atol=1e-5)
    w, running = rtc_weights(H, FROZEN, HELD)[:, None], towards.chunk.numpy()
    share = w * (1 - abar[0]) / (w * (1 - abar[0]) + 1 - w)
    np.testing.assert_allclose(held, np.broadcast_to((1 - share) * wish + share * running, held.shape), atol=1e-5)
    assert share[FROZEN] < 0.1 < w[FROZEN]


class Undecided(Certain):
    """The same of a policy that knows two answers for every number, `wish` and its opposite, equally good."""

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        a = self.abar[t][:, None, None]
        estimate = self.wish * torch.tanh(a.sqrt() * self.wish * x / (1 - a))
        return (x - a.sqrt() * estimate) / (1 - a).sqrt(), {}


@EVERY
def test_a_policy_with_two_answers_goes_on_with_the_running_one_and_not_between_them(sampler: SamplerSpec) -> None:
    policy = small_policy(sampler.model_copy(update={"finetuned_steps": sampler.steps}), horizon=H)
    wish = np.full((H, 2), 0.7)
    policy.network = Undecided(wish, alpha_bars(sampler.train_steps))
    seen, noise = drawn(policy, rows=200, dtype=torch.float64)
    side = torch.sign(torch.randn(200, H, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    weight = torch.tensor(rtc_weights(H, FROZEN, HELD))
    free = policy.sample(seen, noise, False).chunk
    held = policy.sample(seen, noise, False, Guide(0.7 * side, weight)).chunk
    same = [(torch.sign(chunk) == side).double().mean((0, 2)).numpy() for chunk in (free, held)]  # (H,) share
    assert (np.abs(same[0] - 0.5) < 0.1).all()
    assert same[1][FROZEN] > 0.62
    assert same[1][HELD:].max() < 0.58
    assert (held.abs() - 0.7).abs().quantile(0.9) < 0.07


# --- the actor --------------------------------------------------------------------------------------------------------


def actor(**spec: object) -> Actor:
    """A policy whose actions are not in model units."""
    policy = small_policy(SAMPLERS[2], double=False, horizon=H, **spec)
    policy.normalizer.action_min.copy_(torch.tensor([-0.4, -0.9]))
    policy.normalizer.action_max.copy_(torch.tensor([0.5, 0.8]))
    return Actor(policy, seed=0)


def test_acting_executes_the_first_steps_of_the_prediction() -> None:
    whole, executed = actor().predict(RAW, [3], [1]), actor().act(RAW, [3], [1])
    assert whole.shape == (1, H, 2) and whole.dtype == np.float64
    np.testing.assert_array_equal(executed, whole[:, :2])


def test_a_prediction_goes_on_from_its_prefix() -> None:
    running = actor().predict(RAW, [3], [1])[0, 2:]
    free, held = actor().predict(RAW, [3], [2])[0], actor().predict(RAW, [3], [2], running, FROZEN)[0]
    assert np.abs(free - held).max() > 0.05
    np.testing.assert_allclose(held[:FROZEN], running[:FROZEN], rtol=0, atol=1e-6)
    distance = [np.abs(chunk[: len(running)] - running).mean() for chunk in (held, free)]
    assert distance[0] < distance[1]
    longer = np.concatenate([running, np.tile(running[-1:], (9, 1))])
    np.testing.assert_array_equal(  # what lies beyond the horizon, and what fills it up, does not count
        actor().predict(RAW, [3], [2], longer, FROZEN), actor().predict(RAW, [3], [2], longer[:H], FROZEN)
    )


@pytest.mark.parametrize(("prefix", "frozen", "message"), [
    (np.zeros((3, 3)), 1, r"must be \(steps, 2\)"), (np.zeros((0, 2)), 0, r"must be \(steps, 2\)"),
    (np.full((3, 2), np.nan), 1, "NaN"), (np.zeros((3, 2)), 4, "4 frozen steps of 3"),
])  # fmt: skip
def test_a_prefix_that_does_not_fit_is_refused(prefix: Array, frozen: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        actor().predict(RAW, [3], [1], prefix, frozen)


@pytest.mark.parametrize(("sampler", "network"), [
    (GaussianSpec(), GaussianMLPSpec(hidden=(8, 8, 8))), (GaussianSpec(kind="gmm"), GMMMLPSpec(hidden=(8, 8, 8))),
])  # fmt: skip
def test_policies_that_do_not_denoise_refuse_a_guide(sampler: GaussianSpec, network: object) -> None:
    policy = small_policy(sampler, double=False, network=network)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rtc needs a diffusion policy"):
        Actor(policy, 0).predict(RAW, [3], [1], np.zeros((2, 2)), 1)
