"""Schedule, DDPM and DDIM against published numbers, independent NumPy loops and a case with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import norm
from torch import Tensor

from d2ppo_core.diffusion.chain import DenoisingChain, ddim_table, ddpm_table, gaussian_log_prob
from d2ppo_core.diffusion.schedule import NoiseSchedule, cosine_betas
from d2ppo_core.network_specs import SamplerSpec
from d2ppo_core.networks.encoder import Network, StateEncoder
from d2ppo_core.observation import Observation
from oracles import alpha_bars, denoise, denoise_mean, small_policy

ABAR_20 = [
    0.9920,
    0.9721,
    0.9407,
    0.8987,
    0.8470,
    0.7869,
    0.7199,
    0.6475,
    0.5715,
    0.4938,
    0.4163,
    0.3408,
    0.2692,
    0.2031,
    0.1443,
    0.0940,
    0.0537,
    0.0241,
    0.0061,
    6.06e-6,
]
STD_20 = [
    0,
    0.0758,
    0.1232,
    0.1617,
    0.1952,
    0.2257,
    0.2546,
    0.2827,
    0.3107,
    0.3392,
    0.3690,
    0.4007,
    0.4354,
    0.4744,
    0.5194,
    0.5734,
    0.6412,
    0.7310,
    0.8573,
    0.9965,
]


class LinearNet(Network):
    """eps = x W + t c + state v: no nonlinearity hides an index error."""

    def __init__(self) -> None:
        super().__init__((3, 2), StateEncoder(3, ()), None, 3, (), 1)
        rng = np.random.default_rng(0)
        self.W = torch.tensor(rng.normal(0, 0.4, (2, 2)))
        self.c, self.v = torch.tensor(rng.normal(0, 0.02, 2)), torch.tensor(rng.normal(0, 0.3, (3, 2)))

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x @ self.W + t[:, None, None] * self.c + (state @ self.v)[:, None], {}


class GaussianData(Network):
    """The best noise prediction for data x_0 ~ N(mean, std^2), in closed form."""

    def __init__(self, K: int, mean: float, std: float) -> None:
        super().__init__((3, 2), StateEncoder(3, ()), None, 3, (), 1)
        self.abar, self.mean, self.std = torch.tensor(alpha_bars(K)), mean, std

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        a = self.abar[t][:, None, None]
        return (1 - a).sqrt() * (x - a.sqrt() * self.mean) / (a * self.std**2 + 1 - a), {}


def test_schedule_of_20_steps_has_the_published_numbers() -> None:
    """Would catch another offset s, another grid u, or a missing clip at 0.999."""
    beta = cosine_betas(20)
    np.testing.assert_allclose(
        beta[[0, 1, 10, 18, 19]], [0.00799272, 0.02007500, 0.15699708, 0.74847609, 0.999], atol=5e-9
    )
    abar = NoiseSchedule(20).alpha_bar.double().numpy()
    np.testing.assert_allclose(abar[:19], ABAR_20[:19], atol=5.1e-5)
    np.testing.assert_allclose(abar[19], ABAR_20[19], rtol=1e-3)
    t, A, B, sigma = ddpm_table(20)
    np.testing.assert_array_equal(t, np.arange(19, -1, -1))
    np.testing.assert_allclose(sigma[::-1], STD_20, atol=5.1e-5)
    np.testing.assert_allclose([A[t == 1][0], B[t == 1][0]], [0.716466, 0.283514], atol=5e-7)


def test_schedule_of_100_steps_has_the_published_numbers() -> None:
    beta, sigma = cosine_betas(100), ddpm_table(100)[3][::-1]
    np.testing.assert_allclose(
        beta[[0, 1, 50, 98, 99]], [0.000631282, 0.001116937, 0.03154634, 0.74993928, 0.999], atol=5e-9
    )
    abar = NoiseSchedule(100).alpha_bar.double().numpy()
    np.testing.assert_allclose(abar[[0, 50]], [0.99936872, 0.47826463], atol=1e-7)
    np.testing.assert_allclose(abar[[98, 99]], [2.4286e-4, 2.4286e-7], rtol=1e-4)
    np.testing.assert_allclose(sigma[[1, 2, 5, 50]], [0.0201, 0.0289, 0.0471, 0.1749], atol=5.1e-5)
    assert list(np.flatnonzero(sigma < 0.1)) == list(range(21))  # a floor of 0.1 changes t <= 20
    assert list(np.flatnonzero(sigma < 0.04)) == list(range(4))
    assert list(np.flatnonzero(ddpm_table(20)[3][::-1] < 0.1)) == [0, 1]


def test_ddim_table_has_the_published_numbers() -> None:
    """Five steps of 100: leading spacing, alpha_bar_prev of the last step 1. Would catch an off-by-one in either."""
    t, A, B, sigma = ddim_table(100, 5, 1.0)
    np.testing.assert_array_equal(t, [80, 60, 40, 20, 0])
    abar = alpha_bars(100)[t]
    np.testing.assert_allclose(abar, [0.08515, 0.32612, 0.63252, 0.88910, 0.99937], atol=5.1e-6)
    direction = B * np.sqrt(1 - abar)
    np.testing.assert_allclose(sigma, [0.73775, 0.51397, 0.29511, 0.02506, 0], atol=5.1e-6)
    np.testing.assert_allclose(direction, [0.36000, 0.32144, 0.15430, 0.00179, 0], atol=5.1e-6)
    before = (A + direction * np.sqrt(abar) / np.sqrt(1 - abar)) ** 2
    np.testing.assert_allclose(before, [0.32612, 0.63252, 0.88910, 0.99937, 1], atol=5.1e-6)
    np.testing.assert_allclose([A[-1], B[-1]], [1, 0], atol=1e-12)  # the last mean is the clean estimate itself


def test_floors_of_the_noise() -> None:
    """Exploring: at least min_sampling_std, the last step too. Acting: 1e-3 in DDPM's middle, none at the end."""
    spec = SamplerSpec(min_sampling_std=0.1, min_logprob_std=0.2)
    explore, act = DenoisingChain(spec, True), DenoisingChain(spec, False)
    np.testing.assert_allclose(explore.sampling_std(), [*STD_20[:1:-1], 0.1, 0.1], atol=5.1e-5)
    np.testing.assert_allclose(explore.logprob_std(), np.maximum(STD_20, 0.2)[::-1], atol=5.1e-5)
    np.testing.assert_allclose(act.sampling_std(), STD_20[::-1], atol=5.1e-5)
    assert act.sampling_std()[-1] == 0
    tiny = DenoisingChain(SamplerSpec(train_steps=20000, steps=20000), False)
    assert tiny.sigma[-2] < 1e-3
    assert tiny.sampling_std()[-2] == pytest.approx(1e-3)
    ddim = SamplerSpec(kind="ddim", train_steps=100, steps=5)
    np.testing.assert_allclose(
        DenoisingChain(ddim, True).sampling_std(), [0.73775, 0.51397, 0.29511, 0.1, 0.1], atol=5.1e-6
    )
    assert not DenoisingChain(ddim, False).sampling_std().any()


SAMPLERS = [
    SamplerSpec(finetuned_steps=10),
    SamplerSpec(finetuned_steps=20, min_sampling_std=0.3, noise_clip=0.5),
    SamplerSpec(kind="ddim", train_steps=100, steps=5, finetuned_steps=5),
    SamplerSpec(kind="ddim", steps=4, finetuned_steps=2, eta=0.4),
    SamplerSpec(kind="ddim", steps=20, finetuned_steps=1, sample_clip=0.2),
    SamplerSpec(finetuned_steps=0),
]


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.kind}-{s.steps}-{s.finetuned_steps}")
def test_sampling_equals_a_numpy_loop(sampler: SamplerSpec, explore: bool) -> None:
    """Chunk, stored chain and log-probabilities; noise_clip and sample_clip are exceeded on purpose."""
    policy, net = small_policy(sampler), LinearNet()
    policy.network = net
    rng = np.random.default_rng(1)
    noise, state = 1.5 * rng.standard_normal((6, sampler.steps + 1, 3, 2)), rng.uniform(-1, 1, (6, 3))

    def predict(x: np.ndarray, t: int) -> np.ndarray:
        return x @ net.W.numpy() + t * net.c.numpy() + (state @ net.v.numpy())[:, None]

    expected = denoise(sampler, explore, noise, predict)
    got = policy.sample(Observation(torch.tensor(state[:, None])), torch.tensor(noise), explore)
    K, S = sampler.finetuned_steps, sampler.steps
    assert got.chain.shape == (6, K + 1, 3, 2)
    np.testing.assert_allclose(got.chunk, expected.x[-1], atol=1e-3)
    np.testing.assert_allclose(got.chain, np.stack(expected.x[S - K :], 1), atol=1e-3)
    if explore and K:
        stds = np.maximum(expected.sigma, sampler.min_logprob_std)[S - K :, None, None]
        x, mean = np.stack(expected.x[S - K + 1 :], 1), np.stack(expected.mean[S - K :], 1)
        np.testing.assert_allclose(got.log_prob, norm.logpdf(x, mean, stds), atol=2e-2)


def test_ddim_acts_deterministically_and_explores_not() -> None:
    """Acting, only the initial noise may matter (eta 0); exploring, every step's noise does."""
    policy = small_policy(SamplerSpec(kind="ddim", train_steps=100, steps=5))
    policy.network = LinearNet()
    noise, seen = torch.randn(3, 6, 3, 2, dtype=torch.float64), Observation(torch.zeros(3, 1, 3, dtype=torch.float64))
    for i in range(1, 6):
        other = noise.clone()
        other[:, i] += 0.5
        assert torch.equal(policy.sample(seen, noise, False).chunk, policy.sample(seen, other, False).chunk)
        assert not torch.equal(policy.sample(seen, noise, True).chunk, policy.sample(seen, other, True).chunk)


@pytest.mark.parametrize(
    "sampler", [SamplerSpec(train_steps=100, steps=100), SamplerSpec(kind="ddim", train_steps=100, steps=50)]
)
def test_a_perfect_network_reproduces_the_data(sampler: SamplerSpec) -> None:
    """Gaussian data, closed-form noise prediction: samples have its mean and spread. Catches wrong time indices."""
    policy = small_policy(sampler)
    policy.network = GaussianData(100, 0.3, 0.15)
    noise = torch.randn(4000, sampler.steps + 1, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chunk = policy.sample(Observation(torch.zeros(4000, 1, 3, dtype=torch.float64)), noise, explore=False).chunk
    assert chunk.mean().item() == pytest.approx(0.3, abs=0.01)
    assert chunk.std().item() == pytest.approx(0.15, abs=0.015)


def test_noise_is_added_as_in_the_forward_process() -> None:
    schedule, rng = NoiseSchedule(20), np.random.default_rng(0)
    x0, epsilon, t = rng.normal(size=(7, 3, 2)), rng.normal(size=(7, 3, 2)), np.array([0, 1, 5, 10, 18, 19, 19])
    a = alpha_bars(20)[t][:, None, None]
    got = schedule.add_noise(torch.tensor(x0), torch.tensor(t), torch.tensor(epsilon))
    np.testing.assert_allclose(got, np.sqrt(a) * x0 + np.sqrt(1 - a) * epsilon, atol=1e-6)


def test_gaussian_log_prob_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    x, mean, std = rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 3, 2)), rng.uniform(0.05, 2, 5)
    got = gaussian_log_prob(torch.tensor(x), torch.tensor(mean), torch.tensor(std)[:, None, None])
    np.testing.assert_allclose(got, norm.logpdf(x, mean, std[:, None, None]), rtol=1e-12)
    assert gaussian_log_prob(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.tensor([0.1])).item() == pytest.approx(
        1.38365, abs=5e-6
    )
    at = gaussian_log_prob(torch.full((1, 1, 1), 0.3573), torch.zeros(1, 1, 1), torch.tensor([0.1])).item()
    assert at == pytest.approx(-5, abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_clip": 0.0},
        {"noise_clip": -3.0},
        {"min_sampling_std": -0.1},
        {"min_logprob_std": 0.0},
        {"eta": 1.1},
        {"steps": 10},
        {"kind": "ddim", "steps": 3},
        {"finetuned_steps": 21},
    ],
)
def test_samplers_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    """A density without width would turn the first PPO update into NaN."""
    with pytest.raises(ValidationError):
        SamplerSpec(**wrong)  # type: ignore[arg-type]


@st.composite
def samplers(draw: st.DrawFn) -> SamplerSpec:
    K = draw(st.integers(1, 60))
    if draw(st.booleans()):
        return SamplerSpec(train_steps=K, steps=K, sample_clip=draw(st.floats(0.1, 3)))
    S = draw(st.sampled_from([d for d in range(1, K + 1) if K % d == 0]))
    return SamplerSpec(
        kind="ddim", train_steps=K, steps=S, eta=draw(st.floats(0, 1)), sample_clip=draw(st.floats(0.1, 3))
    )


@settings(max_examples=60, deadline=None)
@given(samplers(), st.booleans(), st.integers(0, 2**31))
def test_every_step_of_every_sampler(spec: SamplerSpec, explore: bool, seed: int) -> None:
    """Any K, any S dividing it, any eta: mean and sigma of each step, for a batch whose rows are at different steps."""
    chain, rng = DenoisingChain(spec, explore).double(), np.random.default_rng(seed)
    i = rng.integers(0, spec.steps, 5)
    x, epsilon = rng.normal(size=(5, 2, 2)), rng.normal(size=(5, 2, 2))
    mean = chain.mean(torch.tensor(x), torch.tensor(epsilon), torch.tensor(i)).numpy()
    for n in range(5):
        t, expected, sigma = denoise_mean(
            spec, spec.eta if explore else 0.0, int(i[n]), x[n], lambda _x, _t, n=n: epsilon[n]
        )
        assert chain.t[i[n]] == t
        np.testing.assert_allclose(mean[n], expected, atol=2e-3)
        assert chain.sigma[i[n]].item() == pytest.approx(sigma, abs=1e-6)
