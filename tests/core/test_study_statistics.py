"""A study's tests and bands against SciPy and against their definitions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from d2ppo_core.study.command import SHIPPED
from d2ppo_core.study.schema import difficulty, read_study
from d2ppo_core.study.statistics import holm, line_with_band, mean_interval, sign_flip_test
from d2ppo_core.study.table import comparisons, on_the_way

RNG, CELL = np.random.default_rng(11), "normalised-infonce_l2-late-0.1"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_exact_paired_permutation(count: int) -> None:
    """Against SciPy's exact test, and against every assignment of signs, one by one; with ties, as rates have them."""
    d = np.round(RNG.normal(0.05, 0.1, count), 2)
    brute = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-9 for s in product((1, -1), repeat=count)])
    assert sign_flip_test(d) == pytest.approx(brute)
    if count > 1:

        def mean(x: np.ndarray, axis: int = -1) -> np.ndarray:
            return x.mean(axis)

        theirs = stats.permutation_test((d,), mean, permutation_type="samples", n_resamples=np.inf)
        assert sign_flip_test(d) == pytest.approx(theirs.pvalue)


def test_random_assignments_beyond_sixteen_pairs() -> None:
    d = RNG.normal(0.3, 1, 40)
    assert sign_flip_test(d) == sign_flip_test(d)
    assert sign_flip_test(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    assert 0 < sign_flip_test(np.full(40, 1.0)) < 1e-4


def test_no_difference_and_the_smallest_p() -> None:
    assert sign_flip_test([0.0] * 5) == 1
    assert sign_flip_test([0.1] * 10) == pytest.approx(2 / 2**10)


def test_p_is_honest_where_nothing_differs() -> None:
    found = [sign_flip_test(np.random.default_rng(n).normal(size=6)) for n in range(600)]
    assert np.mean(np.array(found) <= 0.0625) == pytest.approx(0.0625, abs=0.03)


def stepdown(p: np.ndarray, alpha: float) -> np.ndarray:
    """Holm's procedure as he wrote it: go up the sorted p until one is above alpha / what is left."""
    rejected = np.zeros(len(p), bool)
    for rank, index in enumerate(np.argsort(p)):
        if p[index] > alpha / (len(p) - rank):
            break
        rejected[index] = True
    return rejected


def test_holm_rejects_what_the_procedure_rejects() -> None:
    for _ in range(30):
        p = RNG.uniform(0, 0.2, 6) ** 1.5
        corrected = np.array(holm(p))
        for alpha in (0.01, 0.05, 0.1, 0.3):
            np.testing.assert_array_equal(corrected <= alpha, stepdown(p, alpha))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def rows(task: str, differences: list[float]) -> list[dict]:
    """Two cells of a task with these differences, 20 episodes a seed."""
    made = []
    for seed, d in enumerate(differences):
        for cell, mode, successes in (("none", "off", 8), (CELL, "normalised", 8 + round(20 * d))):
            about = {"task": task, "cell": cell, "policy": "pretrained", "seed": seed, "mode": mode}
            outcome = {"successes": successes, "episodes": 20, "outcomes": "1" * successes + "0" * (20 - successes)}
            made.append({**about, **outcome, "baseline": "none", "status": "ok", "first_seed": 20 * seed})
    return made


def test_primary_tests_are_corrected_for_all_that_were_stated() -> None:
    """Also while one task has no results: looking early must not make a p smaller."""
    study, _ = read_study(SHIPPED / "tier1.yaml")
    lift, can = rows("lift", [0.1, 0.2, 0.1, 0.05, 0.3]), rows("can", [0.1, -0.2, 0.1, -0.1, 0.05])
    found = comparisons([*lift, *can], study)
    assert [(c.task, c.family, c.p) for c in found] == [("lift", "primary", 0.0625), ("can", "primary", 1.0)]
    assert [c.p_holm for c in found] == [3 * 0.0625, 1.0]
    assert found[0].by_seed.value == pytest.approx(0.15) and found[0].by_episode.value == pytest.approx(0.15)
    one = comparisons(can[:2], study)
    assert one[0].p is None and one[0].p_holm is None
    failed = comparisons([{**lift[0], "status": "failed"}, *lift[1:]], study)
    assert failed[0].seeds == (1, 2, 3, 4), "a seed without its baseline is no pair"


def test_who_gets_there_sooner_has_more_success_on_the_way() -> None:
    """Both end at 1; the mean of a curve is what lies below it. A seed without its baseline is no pair."""
    study, _ = read_study(SHIPPED / "tier3.yaml")
    slow, soon = [[100, 0.2], [200, 0.4], [300, 1.0]], [[100, 0.2], [200, 0.9], [300, 1.0]]
    made = [{**row, "policy": "finetuned", "curve": slow if row["mode"] == "off" else soon}
            for row in rows("lift", [0.0, 0.0, 0.0])]  # fmt: skip
    made[1]["curve"] = [[100, 0.5], [200, 0.9], [300, 1.0]]  # of seed 0
    (way,) = on_the_way([*made[:-2], made[-1], *rows("can", [0.1])], study)
    assert (way.task, way.cell, way.seeds) == ("lift", CELL, 2)
    assert (way.rate, way.base_rate) == pytest.approx((2.25 / 3, 1.6 / 3))
    low, high = stats.t.interval(0.95, 1, 0.65 / 3, stats.sem([0.8 / 3, 0.5 / 3]))
    assert way.by_seed.value == pytest.approx(0.65 / 3)
    assert (way.by_seed.low, way.by_seed.high) == pytest.approx((max(-1, low), min(1, high)))


def test_mean_interval_is_students() -> None:
    d = RNG.normal(0.1, 0.05, 8)
    low, high = stats.t.interval(0.95, 7, d.mean(), stats.sem(d))
    found = mean_interval(d)
    assert (found.value, found.low, found.high) == pytest.approx((d.mean(), low, high))
    assert mean_interval([0.2]).low == -1 and mean_interval([-0.9, 0.9]).high == 1


def test_line_and_band() -> None:
    """Slope and p against SciPy; the band against the matrix formula, and for its coverage."""
    x, at = np.repeat([0.0, 0.46, 0.58, 1.0], 5), np.linspace(0, 1, 7)
    y = 0.1 + 0.2 * x + RNG.normal(0, 0.1, len(x))
    line, theirs = line_with_band(x, y, at), stats.linregress(x, y)
    assert line is not None
    assert (line.slope.value, line.p) == pytest.approx((theirs.slope, theirs.pvalue))
    X, A = np.stack([np.ones_like(x), x], 1), np.stack([np.ones_like(at), at], 1)
    beta = np.linalg.solve(X.T @ X, X.T @ y)
    s2 = ((y - X @ beta) ** 2).sum() / (len(x) - 2)
    half = stats.t.ppf(0.975, len(x) - 2) * np.sqrt(s2 * np.einsum("ni,ij,nj->n", A, np.linalg.inv(X.T @ X), A))
    np.testing.assert_allclose(line.high, A @ beta + half)
    np.testing.assert_allclose(line.low, A @ beta - half)
    covered = 0
    for n in range(300):
        y = 0.1 + 0.2 * x + np.random.default_rng(n).normal(0, 0.1, len(x))
        band = line_with_band(x, y, [0.3])
        covered += bool(band.low[0] <= 0.16 <= band.high[0])
    assert covered / 300 == pytest.approx(0.95, abs=0.035)
    assert line_with_band([0, 0, 0], [1, 2, 3], at) is None and line_with_band([0, 1], [1, 2], at) is None


def test_difficulty_is_the_published_one() -> None:
    assert [round(difficulty(s), 3) for s in (108, 224, 272, 529)] == [0, 0.459, 0.581, 1]
