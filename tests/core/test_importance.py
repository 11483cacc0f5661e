"""Importance sampling over denoising steps: unbiased against the full sum, by enumeration and by drawing."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from d2ppo_core.errors import UserError
from d2ppo_core.rl.importance import StepSampler, step_sampler

PROBABILITIES = ["uniform", "discount", "1 5 2 4"]
K = 4


def expectation(sampler: StepSampler, terms: Tensor) -> Tensor:
    """E of the estimate over every possible draw of one chunk; terms (K',) float64."""
    total = terms.new_zeros(())
    for drawn in product(range(len(terms)), repeat=sampler.m):
        k = torch.tensor([drawn])
        total = total + sampler.p[k].prod() * sampler.estimate(terms[k], k)[0]
    return total


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("probability", PROBABILITIES)
def test_the_mean_over_all_draws_is_the_full_sum(probability: str, m: int) -> None:
    terms = torch.tensor([0.3, -2.0, 1.7, 0.05], dtype=torch.float64)
    sampler = step_sampler(K, m, probability, 0.8)
    assert expectation(sampler, terms).item() == pytest.approx(terms.sum().item(), rel=1e-12)


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_the_clipped_objective_has_the_full_sums_gradient(probability: str) -> None:
    """Eq. 34: Gaussian steps of one chunk whose ratios differ from 1, some of them clipped."""
    draw = torch.Generator().manual_seed(0)
    x, old = (torch.randn(K, generator=draw, dtype=torch.float64) for _ in range(2))
    theta = torch.tensor([0.4, -0.2], dtype=torch.float64, requires_grad=True)
    std = torch.linspace(0.9, 0.5, K, dtype=torch.float64)
    mean = theta[0] * torch.linspace(1, 2, K, dtype=torch.float64) + theta[1]
    ratio = (((x - old) ** 2 - (x - mean) ** 2) / (2 * std**2)).exp()
    A = torch.tensor([1.3, -0.7, 1.3, -0.7], dtype=torch.float64)
    terms = torch.maximum(-A * ratio, -A * ratio.clamp(0.9, 1.1))
    assert 0 < (terms != -A * ratio).sum() < K  # some are clipped
    full, estimated = (
        torch.autograd.grad(value, theta, retain_graph=True)[0]
        for value in (terms.sum(), expectation(step_sampler(K, 2, probability, 0.8), terms))
    )
    torch.testing.assert_close(estimated, full, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_drawn_estimates_scatter_around_the_full_sum(probability: str) -> None:
    """200 000 chunks: within five standard errors, and each step as often as it should be."""
    sampler, n = step_sampler(K, 3, probability, 0.8), 200_000
    k = sampler.draw(n, torch.Generator().manual_seed(7))
    terms = torch.tensor([0.3, -2.0, 1.7, 0.05], dtype=torch.float64)
    estimates = sampler.estimate(terms[k], k)
    assert abs(estimates.mean() - terms.sum()) < 5 * estimates.std() / n**0.5
    assert k.shape == (n, 3)
    frequency = torch.bincount(k.flatten(), minlength=K) / k.numel()
    torch.testing.assert_close(frequency.double(), sampler.p, atol=5e-3, rtol=0)
    assert torch.equal(k, sampler.draw(n, torch.Generator().manual_seed(7)))


def test_probabilities_and_weights() -> None:
    """Uniform draws weigh K'/m; "discount" draws the cleanest step most, and what the discount scales down weighs
    more: gamma_denoise^k / p(k) is the same for every step."""
    k = torch.arange(K)
    assert step_sampler(K, 2, "uniform", 0.8).weight(k).tolist() == [K / 2] * K
    sampler = step_sampler(K, 1, "discount", 0.5)
    torch.testing.assert_close(sampler.p, torch.tensor([1, 2, 4, 8], dtype=torch.float64) / 15)
    torch.testing.assert_close(
        sampler.weight(k) * 0.5 ** torch.tensor([3.0, 2, 1, 0]), torch.full((K,), 15 / 8, dtype=torch.float64)
    )
    torch.testing.assert_close(step_sampler(2, 1, "3 1", 0.9).p, torch.tensor([0.75, 0.25], dtype=torch.float64))


@pytest.mark.parametrize(
    ("m", "probability", "discount"),
    [(0, "uniform", 0.9), (2, "1 2", 0.9), (2, "1 2 0 4", 0.9), (2, "1 2 nan 4", 0.9), (2, "best", 0.9), (2, "", 0.9),
     (2, "discount", 0.0)],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(m: int, probability: str, discount: float) -> None:
    with pytest.raises(UserError, match=r"algorithm\.importance_"):
        step_sampler(K, m, probability, discount)
