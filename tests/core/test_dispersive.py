"""Dispersive losses: formulas and gradients against NumPy, saturation at published sizes, diagnostics, warnings."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from d2ppo_core.conf.schema import DispersiveConfig
from d2ppo_core.diffusion.schedule import NoiseSchedule
from d2ppo_core.dispersive import DispersiveLoss, Gram, effective_rank, relative_distance
from d2ppo_core.errors import UserError
from d2ppo_core.network_specs import MLPSpec, SamplerSpec
from d2ppo_core.networks.mlp import DiffusionMLP
from d2ppo_core.observation import Observation
from oracles import alpha_bars, diffusion_mlp, small_policy, weights_of

Array = np.ndarray
PAIRS = [
    (m, v)
    for m in ("normalised", "paper", "release")
    for v in ("infonce_l2", "infonce_cosine", "hinge", "covariance")
    if (m, v) != ("paper", "covariance")
]


def loss_of(mode: str, variant: str, layer: str = "early", **options: float) -> DispersiveLoss:
    return DispersiveLoss(DispersiveConfig(mode=mode, variant=variant, layer=layer, **options))  # type: ignore[arg-type]


def oracle(z: Array, mode: str, variant: str, tau: float, margin: float) -> float:
    """Pair by pair, from the formulas."""
    B, D = z.shape
    if variant == "covariance":
        c = z - z.mean(0)
        if mode == "release":
            return float(sum((c[:, a] @ c[:, b] / (B - 1)) ** 2 for a in range(D) for b in range(D)))
        spread = np.sqrt((c**2).mean(0) + 1e-6 * (c**2).mean())
        return float(
            sum(((c[:, a] / spread[a]) @ (c[:, b] / spread[b]) / B) ** 2 for a in range(D) for b in range(D) if a != b)
            / D
        )
    u = z / np.sqrt((z**2).mean()) if mode == "normalised" else z
    values = []
    for i in range(B):
        for j in range(B):
            if i == j and mode == "normalised":
                continue
            squared = ((u[i] - u[j]) ** 2).sum() / (D if mode == "normalised" else 1)
            cosine = z[i] @ z[j] / np.sqrt((z[i] @ z[i]) * (z[j] @ z[j]))
            values.append(
                {
                    "infonce_l2": np.exp(-squared / tau),
                    "infonce_cosine": np.exp((cosine - (mode != "release")) / tau),
                    "hinge": max(0.0, (1.0 if mode == "release" else margin) - squared) ** 2,
                }[variant]
            )
    mean = float(np.mean(values))
    return mean if variant == "hinge" else float(np.log(mean))


def features(kind: str, B: int = 7, D: int = 5) -> Array:
    rng = np.random.default_rng(0)
    if kind == "near-duplicates":
        return rng.normal(size=(1, D)) + 1e-3 * rng.normal(size=(B, D))
    return rng.normal(0.1, 0.4, size=(B, D)) if kind == "random" else rng.normal(5, 0.3, size=(B, D))


@pytest.mark.parametrize("kind", ["random", "offset", "near-duplicates"])
@pytest.mark.parametrize(("mode", "variant"), PAIRS)
def test_value_and_gradient_equal_the_formula(mode: str, variant: str, kind: str) -> None:
    """Float64, gradient by central differences of the oracle. Catches a lost 1/D, tau, diagonal or RMS gradient."""
    z, tau, margin, h = features(kind), 0.4, 1.3, 1e-6 if kind != "near-duplicates" else 1e-8
    tensor = torch.tensor(z, requires_grad=True)
    loss = loss_of(mode, variant, temperature=tau, margin=margin).of_feature(tensor)
    assert loss.item() == pytest.approx(oracle(z, mode, variant, tau, margin), rel=1e-6, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, tensor)
    numeric = np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        step = np.zeros_like(z)
        step[index] = h
        numeric[index] = (
            oracle(z + step, mode, variant, tau, margin) - oracle(z - step, mode, variant, tau, margin)
        ) / (2 * h)
    scale = np.abs(numeric).max()
    np.testing.assert_allclose(gradient, numeric, atol=2e-3 * scale + 1e-7 / (1 if kind != "near-duplicates" else 1e-3))


@pytest.mark.parametrize(("mode", "variant"), PAIRS)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_collapsed_features_give_finite_loss_and_gradient(mode: str, variant: str, scale: float) -> None:
    """All samples equal, even all zero: no 0/0, and nothing that the optimiser cannot digest."""
    z = torch.full((8, 5), scale, requires_grad=True)
    loss = loss_of(mode, variant).of_feature(z)
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert gradient.norm() < 1e-5


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize(("mode", "variant"), PAIRS)
def test_gradient_is_the_derivative(mode: str, variant: str, shape: tuple[int, int]) -> None:
    """Float64, more samples than dimensions and fewer: all go through the hand-written gradient of the Gram matrix."""
    loss = loss_of(mode, variant, margin=2.5)
    z = (0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(loss.of_feature, z)
    assert torch.autograd.gradcheck(Gram.apply, z)


@pytest.mark.parametrize(("mode", "variant"), PAIRS)
def test_stacked_batches_are_the_batches_alone(mode: str, variant: str) -> None:
    """Several seeds are trained at once: losses and gradients of a stack under `vmap`."""
    loss = loss_of(mode, variant, margin=2.5)
    stack = torch.tensor(np.stack([features("random"), features("offset")])).requires_grad_()
    together = torch.func.vmap(loss.of_feature)(stack)
    alone = torch.stack([loss.of_feature(z) for z in stack])
    gradients = [
        torch.autograd.grad((values * torch.tensor([1.0, 3.0])).sum(), stack)[0] for values in (together, alone)
    ]
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", ["infonce_l2", "infonce_cosine", "hinge"])
def test_fewer_pairs_are_an_unbiased_sample_of_all(variant: str) -> None:
    """Over every order of the batch the mean (inside the logarithm) is that of all pairs; rows of one length, as the
    scale is the subset's own. Catches a wrong count of pairs and rows that are always the same."""
    z = torch.nn.functional.normalize(torch.tensor(features("random", 6, 4)), dim=1)
    whole, some = (loss_of("normalised", variant, pairs=n, margin=3.0) for n in (0, 3))
    inside = torch.exp if variant.startswith("infonce") else torch.clone
    values = [inside(some.of_feature(z[list(order)])).item() for order in permutations(range(6))]
    assert np.mean(values) == pytest.approx(inside(whole.of_feature(z)).item(), rel=1e-12)
    assert np.std(values) > 1e-3
    assert loss_of("normalised", variant, pairs=99).of_feature(z) == loss_of("normalised", variant).of_feature(z)


def test_published_reference_values() -> None:
    """B = 256: collapsed, far apart, and standard normal features of 28 dimensions at tau 0.5."""
    same, far = torch.ones(256, 8, dtype=torch.float64), 100 * torch.eye(256, dtype=torch.float64)
    for mode in ("release", "paper"):
        assert loss_of(mode, "infonce_l2").of_feature(same).item() == pytest.approx(0, abs=1e-9)
        assert loss_of(mode, "infonce_l2").of_feature(far).item() == pytest.approx(-5.54518, abs=5e-6)
        assert loss_of(mode, "hinge").of_feature(same).item() == pytest.approx(1, abs=1e-9)
        assert loss_of(mode, "hinge").of_feature(far).item() == pytest.approx(1 / 256, abs=1e-9)
    assert loss_of("release", "infonce_cosine").of_feature(same).item() == pytest.approx(2, abs=1e-9)  # 1 / tau
    assert loss_of("paper", "infonce_cosine").of_feature(same).item() == pytest.approx(0, abs=1e-9)
    z = torch.randn(256, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert loss_of("release", "infonce_l2").of_feature(z).item() == pytest.approx(-5.5452, abs=2e-3)
    # with 1/D and unit RMS: E exp(-2 chi2_28 / (28 tau)) = (1 + 4 / (28 tau))^-14
    assert loss_of("normalised", "infonce_l2").of_feature(z).item() == pytest.approx(-14 * np.log(1 + 8 / 28), abs=0.05)


def test_normalised_ignores_the_scale_and_never_pushes_it() -> None:
    """Same value for any scale, and a gradient without radial part: inflating the features cannot lower the loss."""
    base = torch.tensor(features("random", 16, 9))
    for variant in ("infonce_l2", "infonce_cosine", "hinge", "covariance"):
        loss, values = loss_of("normalised", variant), []
        for scale in (1e-3, 1.0, 1e3):
            z = (scale * base).requires_grad_()
            value = loss.of_feature(z)
            (gradient,) = torch.autograd.grad(value, z)
            assert abs((gradient * z).sum().item()) < 1e-5 * gradient.norm() * z.norm(), variant
            values.append(value.item())
        np.testing.assert_allclose(values, values[1], rtol=1e-9)


def lift_features(tap: str, seed: int = 0) -> torch.Tensor:
    """Features of a fresh 512x3 network of the Lift size on a noised batch of 256."""
    torch.manual_seed(seed)
    network = DiffusionMLP(MLPSpec(), (4, 7), 19)
    x0, t = torch.rand(256, 4, 7) * 2 - 1, torch.randint(20, (256,))
    x = NoiseSchedule(20).add_noise(x0, t, torch.randn(256, 4, 7))
    return network(x, t, torch.rand(256, 19) * 2 - 1)[1][network.tap(tap)[0]].detach()


@pytest.mark.parametrize("seed", range(3))
def test_released_default_has_no_gradient_and_normalised_has(seed: int) -> None:
    """The release's early layer saturates at ln(1/256) exactly; the scale-free form does not."""
    z = lift_features("released_early", seed)
    squared = ((z[:, None] - z[None]) ** 2).sum(-1).double()
    weights = torch.exp(-squared / 0.5)[~torch.eye(256, dtype=torch.bool)]
    assert weights.max() <= 1e-20
    loss = loss_of("release", "infonce_l2", "released_early")
    dispersion = loss.diagnose({"z": z}, ("z",))
    assert dispersion.loss.item() == pytest.approx(np.log(1 / 256), abs=1e-6)
    assert dispersion.gradient_norm < 1e-15
    assert "saturated" in (loss.warning(dispersion) or "")
    hinge = loss_of("release", "hinge", "released_early").diagnose({"z": z}, ("z",))
    assert hinge.loss.item() == pytest.approx(1 / 256, abs=1e-7)
    assert hinge.gradient_norm == 0
    healthy = loss_of("normalised", "infonce_l2")
    dispersion = healthy.diagnose({"z": z}, ("z",))
    assert dispersion.gradient_norm > 1e-3
    assert healthy.warning(dispersion) is None


def test_released_tap_of_the_predicted_noise_is_not_saturated_at_first() -> None:
    dispersion = loss_of("release", "infonce_l2", "released_mid").diagnose({"z": lift_features("released_mid")}, ("z",))
    assert -3.9 < dispersion.loss.item() < -1.0
    assert dispersion.gradient_norm > 1e-2


def test_diagnostics_of_known_features() -> None:
    """Relative distance sqrt(2) for independent normal features; effective rank of a spectrum put in by hand."""
    rng = np.random.default_rng(0)
    z = torch.tensor(rng.normal(size=(400, 300)))
    assert relative_distance(3 * z) == pytest.approx(np.sqrt(2), abs=0.01)
    assert relative_distance(torch.ones(9, 4) + 1e-3 * torch.randn(9, 4)) < 0.01
    spectrum = np.array([4.0, 2.0, 1.0, 1.0])
    left = np.linalg.qr(np.hstack([np.ones((50, 1)), rng.normal(size=(50, 4))]))[0][:, 1:]  # columns of mean 0
    right = np.linalg.qr(rng.normal(size=(7, 7)))[0][:, :4]
    p = spectrum / 8
    known = torch.tensor(left @ np.diag(spectrum) @ right.T + 10.0)  # the mean must not count as a direction
    assert effective_rank(known) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert effective_rank(torch.tensor(left @ right.T)) == pytest.approx(4, rel=1e-6)


def test_gradient_norm_is_per_unit_rms_features() -> None:
    z = torch.tensor(features("random", 12, 6), dtype=torch.float32)
    loss = loss_of("normalised", "infonce_l2")
    norms = [loss.diagnose({"z": s * z}, ("z",)).gradient_norm for s in (0.01, 1.0, 100.0)]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-4)


def test_inflation_warns_and_growth_within_bounds_does_not() -> None:
    loss, z = loss_of("release", "infonce_l2"), 0.05 * torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    for scale, expected in ((1, False), (4, False), (6, True)):
        text = loss.warning(loss.diagnose({"z": scale * z}, ("z",)))
        assert (text is not None and "inflates" in text) == expected


def test_paper_mode_is_the_mean_over_all_denoising_steps() -> None:
    """Eq. 7: K forward passes of the same batch, each at one step for everybody; and the loss of the epsilons."""
    policy, rng = small_policy(SamplerSpec(train_steps=6, steps=6)), np.random.default_rng(0)
    state, x0, epsilon = rng.normal(size=(5, 1, 3)), rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 3, 2))
    t = np.array([0, 1, 5, 3, 2])
    loss = loss_of("paper", "infonce_l2", "late", temperature=0.5)
    seen, chunk = Observation(torch.tensor(state)), torch.tensor(x0)
    noise = torch.tensor(t), torch.tensor(epsilon)
    got = policy.loss(seen, chunk, noise, loss)
    w, abar, terms = weights_of(policy.network), alpha_bars(6), []
    for k in range(6):
        x = np.sqrt(abar[k]) * x0 + np.sqrt(1 - abar[k]) * epsilon
        z = diffusion_mlp(w, policy.spec.network, x, np.full(5, k), state[:, 0])[1]["block0"]
        terms.append(oracle(z, "paper", "infonce_l2", 0.5, 1.0))
    assert got.dispersive.item() == pytest.approx(np.mean(terms), abs=1e-5)
    a = abar[t][:, None, None]
    predicted, taps = diffusion_mlp(w, policy.spec.network, np.sqrt(a) * x0 + np.sqrt(1 - a) * epsilon, t, state[:, 0])
    assert got.imitation.item() == pytest.approx(((predicted - epsilon) ** 2).mean(), abs=1e-6)
    for mode in ("release", "normalised"):  # at the sampled steps
        one = policy.loss(seen, chunk, noise, loss_of(mode, "infonce_l2", "late"))
        assert one.dispersive.item() == pytest.approx(oracle(taps["block0"], mode, "infonce_l2", 0.5, 1.0), abs=1e-5)


def test_off_weight_zero_and_single_samples() -> None:
    policy, state, x = small_policy(SamplerSpec()), torch.randn(4, 1, 3).double(), torch.randn(4, 3, 2).double()
    for config in (DispersiveConfig(mode="off"), DispersiveConfig(weight=0.0)):
        assert policy.loss(Observation(state), x, (torch.arange(4), x), DispersiveLoss(config)).dispersive.item() == 0
    assert loss_of("normalised", "infonce_l2").of_feature(torch.randn(1, 5)).item() == 0
    alone = loss_of("normalised", "infonce_l2").diagnose({"z": torch.randn(1, 5)}, ("z",))
    assert all(np.isfinite(v) for v in alone.metrics().values())
    z = {"a": torch.randn(4, 3), "b": torch.randn(4, 2, 3)}
    loss = loss_of("normalised", "infonce_l2")
    mean = (loss.of_feature(z["a"]) + loss.of_feature(z["b"].view(4, 6))) / 2
    assert loss(z, ("a", "b")).item() == pytest.approx(mean.item())


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "best"},
        {"variant": "l2"},
        {"layer": "4"},
        {"temperature": 0.0},
        {"pairs": 1},
        {"pairs": -3},
        {"mode": "paper", "variant": "covariance"},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        DispersiveLoss(DispersiveConfig(**wrong))  # type: ignore[arg-type]


# --- training ---------------------------------------------------------------------------------------------------------


def demonstrations() -> tuple[torch.Tensor, torch.Tensor]:
    """20 noisy walks to a goal in space: states (n, 1, 10) and chunks (n, 4, 4) in model units."""
    rng, states, chunks = np.random.default_rng(0), [], []
    for _ in range(20):
        position, goal, noise, actions = rng.uniform(-1, 1, 3), rng.uniform(-1, 1, 3), np.zeros(3), []
        for _ in range(60):
            noise = 0.9 * noise + 0.3 * rng.normal(size=3)
            away = goal - position
            actions.append(
                [*np.clip(np.clip(5 * away, -1, 1) + 0.3 * noise, -1, 1), 1.0 if np.linalg.norm(away) < 0.1 else -1.0]
            )
            states.append([*position, *goal, *away, np.linalg.norm(away)])
            position = position + 0.05 * np.array(actions[-1][:3])
        padded = actions + 3 * [actions[-1]]
        chunks += [padded[i : i + 4] for i in range(60)]
    return torch.tensor(states, dtype=torch.float32), torch.tensor(chunks, dtype=torch.float32)


def train(kind: str, steps: int = 1500) -> tuple[float, float, float]:
    """Growth of the late feature's RMS, its effective rank and the ε-loss at the end."""
    states, chunks = demonstrations()
    torch.manual_seed(0)
    network, schedule, draw = (
        DiffusionMLP(MLPSpec(hidden=(128,) * 3), (4, 4), 10),
        NoiseSchedule(20),
        torch.Generator().manual_seed(1),
    )
    optimiser, first = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-6), 0.0
    normalised = loss_of("normalised", "infonce_l2", "late")
    for _ in range(steps):
        index, t = torch.randint(len(states), (128,), generator=draw), torch.randint(20, (128,), generator=draw)
        epsilon = torch.randn(128, 4, 4, generator=draw)
        predicted, taps = network(schedule.add_noise(chunks[index], t, epsilon), t, states[index])
        z, loss = taps["block0"], (predicted - epsilon).square().mean()
        first = first or z.detach().square().mean().sqrt().item()
        total = loss
        if kind == "normalised":
            total = loss + 0.5 * normalised(taps, network.tap("late"))
        elif kind == "raw off-diagonal":  # what the default form would be without the division by the RMS
            d = torch.cdist(z, z).square()[~torch.eye(128, dtype=torch.bool)] / z.shape[1]
            total = loss + 0.5 * (torch.logsumexp(-d / 0.5, 0) - np.log(len(d)))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return z.detach().square().mean().sqrt().item() / first, effective_rank(z.detach()), loss.item()


def test_training_disperses_without_inflating() -> None:
    """The reason for the default form: rank rises, scale stays, the task is still learned. Without the RMS it fails."""
    (_, rank_without, loss_without), (growth, rank, loss) = train("none"), train("normalised")
    assert rank > 1.4 * rank_without
    assert growth < 3
    assert loss < 1.5 * loss_without
    assert train("raw off-diagonal", 300)[0] > 20
