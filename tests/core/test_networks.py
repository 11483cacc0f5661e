"""Networks: published sizes, forward passes against NumPy, and which feature each tap names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from d2ppo_core.network_specs import (
    GaussianMLPSpec,
    GaussianTransformerSpec,
    GMMMLPSpec,
    GMMTransformerSpec,
    MLPSpec,
    SamplerSpec,
    UNetSpec,
    VisionSpec,
)
from d2ppo_core.networks.blocks import ResidualBlock
from d2ppo_core.networks.build import build_critic, build_network
from d2ppo_core.networks.critics import StateCritic
from d2ppo_core.networks.mlp import DiffusionMLP
from d2ppo_core.networks.vision import ViT
from d2ppo_core.observation import Observation
from network_oracles import camera
from oracles import diffusion_mlp, residual_trunk, small_policy, weights_of


def net(
    hidden: int = 512,
    layers: int = 3,
    time: int = 16,
    condition: tuple[int, ...] = (),
    activation: str = "mish",
    norm: bool = False,
) -> MLPSpec:
    return MLPSpec(
        hidden=(hidden,) * layers, time_size=time, condition_hidden=condition, activation=activation, layer_norm=norm
    )  # type: ignore[arg-type]


def wide(width: int, layers: int = 3, **options: object) -> dict[str, object]:
    return {"hidden": (width,) * layers, **options}


VISION = VisionSpec()
ONE, TWO = (camera(),), (camera("left"), camera("right"))
PUBLISHED = {  # network, (H, Da), state size, cameras, parameters
    "lift": (net(), (4, 7), 19, (), 573_516),
    "can": (net(), (4, 7), 23, (), 575_564),
    "square": (net(1024, time=32, condition=(512, 64)), (4, 7), 23, (), 2_305_212),
    "transport": (net(1024, time=32), (8, 14), 59, (), 2_427_088),
    "hopper": (net(activation="relu"), (4, 3), 11, (), 553_020),
    "walker": (net(activation="relu"), (4, 6), 17, (), 568_392),
    "one_leg": (net(1024, 7, 32, (512, 64), norm=True), (8, 10), 58, (), 6_640_368),
    "lamp": (net(1024, 7, 32, (512, 64), norm=True), (8, 10), 44, (), 6_633_200),
    "avoid": (net(activation="relu"), (4, 2), 4, (), 545_336),
    "lift pixels": (MLPSpec(**wide(512), time_size=32, vision=VISION), (4, 7), 9, ONE, 1_064_956),
    # Square from pixels is listed with 1.06M, as Lift and Can, but its configuration has three layers of 768:
    "square pixels": (MLPSpec(**wide(768), time_size=32, vision=VISION), (4, 7), 9, ONE, 1_778_684),
    "transport pixels": (MLPSpec(**wide(768), time_size=32, vision=VISION), (8, 14), 18, TWO, 2_048_720),
    "gaussian can": (GaussianMLPSpec(), (4, 7), 23, (), 551_964),
    "gaussian square": (GaussianMLPSpec(**wide(1024)), (4, 7), 23, (), 2_152_476),
    # Transport's Gaussian MLP is listed with 1.93M, which is what the one with the ViT has:
    "gaussian transport": (GaussianMLPSpec(**wide(1024)), (8, 14), 59, (), 2_275_440),
    "gaussian transport pixels": (GaussianMLPSpec(**wide(768), vision=VISION), (8, 14), 18, TWO, 1_933_936),
    "gaussian lift pixels": (GaussianMLPSpec(vision=VISION), (4, 7), 9, ONE, 1_030_044),
    "gaussian one_leg": (GaussianMLPSpec(**wide(1024, 11), activation="relu"), (8, 10), 58, (), 10_638_416),
    "gaussian lamp": (GaussianMLPSpec(**wide(1024, 11), activation="relu"), (8, 10), 44, (), 10_624_080),
    "gmm can": (GMMMLPSpec(), (4, 7), 23, (), 1_149_585),
    "gmm square": (GMMMLPSpec(**wide(1024)), (4, 7), 23, (), 4_396_177),
    "gmm transport": (GMMMLPSpec(**wide(1024)), (8, 14), 59, (), 4_900_405),
    "gaussian transformer can": (GaussianTransformerSpec(), (4, 7), 23, (), 674_983),
    "gaussian transformer square": (GaussianTransformerSpec(width=160), (4, 7), 23, (), 1_862_247),
    "gaussian transformer transport": (GaussianTransformerSpec(width=160), (8, 14), 59, (), 1_869_774),
    "gmm transformer can": (GMMTransformerSpec(), (4, 7), 23, (), 679_624),
    "gmm transformer square": (GMMTransformerSpec(width=160), (4, 7), 23, (), 1_869_960),
    "gmm transformer transport": (GMMTransformerSpec(width=160), (8, 14), 59, (), 1_885_195),
    "unet lift": (UNetSpec(width=40), (4, 7), 19, (), 648_615),
    "unet can": (UNetSpec(width=40), (4, 7), 23, (), 652_455),
    "unet square": (UNetSpec(), (4, 7), 23, (), 1_623_255),
    "unet transport": (UNetSpec(), (16, 14), 59, (), 1_681_694),
    "unet one_leg": (UNetSpec(multipliers=(1, 2, 4)), (16, 10), 58, (), 6_856_346),
    "unet lamp": (UNetSpec(multipliers=(1, 2, 4)), (16, 10), 44, (), 6_806_170),
    "unet lift pixels": (UNetSpec(width=40, time_size=32, vision=VISION), (4, 7), 9, ONE, 1_203_191),
    "unet square pixels": (UNetSpec(time_size=32, vision=VISION), (4, 7), 9, ONE, 2_248_871),
    "unet transport pixels": (UNetSpec(time_size=32, vision=VISION), (16, 14), 18, TWO, 2_498_158),
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    """Would catch a missing bias, layer or norm, or a wrong input width."""
    spec, chunk, state, cameras, expected = PUBLISHED[name]
    with torch.device("meta"):  # sizes alone
        assert count(build_network(spec, chunk, state, cameras)) == expected


def test_critics_have_the_published_sizes() -> None:
    with torch.device("meta"):
        assert count(build_critic(None, 23)) == 137_985
        assert count(build_critic(VISION, 9, ONE)) == 586_881
        assert count(build_critic(VISION, 18, TWO)) == 657_665
        assert count(ViT(VISION, 96, 96)) == 386_304


def test_critic_equals_numpy() -> None:
    critic, state = StateCritic(5, (16, 16, 16)).double(), np.random.default_rng(0).normal(size=(7, 5))
    expected, _ = residual_trunk(weights_of(critic), "trunk", state, 1, "mish", False)
    np.testing.assert_allclose(critic(torch.tensor(state)).detach(), expected[:, 0], rtol=1e-10)


FORMS = [
    MLPSpec(hidden=(8, 8, 8), time_size=4),
    MLPSpec(hidden=(8,) * 7, time_size=6, activation="relu"),
    MLPSpec(hidden=(8,) * 7, time_size=4, condition_hidden=(10, 5), layer_norm=True),
    MLPSpec(hidden=(8, 8, 8), time_size=4, condition_hidden=(7, 6, 5), activation="relu", layer_norm=True),
    MLPSpec(hidden=(8, 12, 6), time_size=4, residual=False),
    MLPSpec(hidden=(8, 12), time_size=4, residual=False, activation="relu"),
    MLPSpec(hidden=(8, 12, 6), time_size=4, residual=False, condition_hidden=(9, 4)),
    MLPSpec(hidden=(8, 12, 6), time_size=4, residual=False, layer_norm=True),
]


@pytest.mark.parametrize(
    "spec",
    FORMS,
    ids=lambda s: f"{'residual' * s.residual or 'plain'}{s.hidden}-{s.activation}-{s.condition_hidden}-{s.layer_norm}",
)
def test_forward_equals_numpy(spec: MLPSpec) -> None:
    """Output and every named feature, weights moved off their initial values (a fresh LayerNorm hides errors)."""
    torch.manual_seed(0)
    network, rng = DiffusionMLP(spec, (3, 2), 5).double(), np.random.default_rng(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x, t, state = rng.normal(size=(6, 3, 2)), np.array([0, 1, 5, 19, 50, 99]), rng.normal(size=(6, 5))
    out, features = network(torch.tensor(x), torch.tensor(t), network.encode(torch.tensor(state)))
    expected, expected_features = diffusion_mlp(weights_of(network), spec, x, t, state)
    np.testing.assert_allclose(out.detach(), expected, atol=1e-6)  # the embedding's angles are float32
    assert list(features) == list(expected_features)
    for name, value in expected_features.items():
        np.testing.assert_allclose(features[name].detach(), value, atol=1e-6, err_msg=name)


TAPS = [  # blocks or hidden layers, residual, encoder: early, mid, late; released early, mid, late
    (3, True, False, ("input", "block0.inside", "block0"), ("block0", "output", "output")),
    (3, True, True, ("input", "block0.inside", "block0"), ("block0", "output", "condition")),
    (7, True, False, ("block0", "block1", "block2"), ("block0", "block2", "output")),
    (7, True, True, ("block0", "block1", "block2"), ("block0", "block2", "output")),
    (9, True, False, ("block0", "block1", "block2"), None),
    (11, True, False, ("block1", "block2", "block3"), None),
    (1, True, False, ("input", "input", "input"), None),
    (3, False, False, ("hidden0", "hidden1", "hidden2"), ("hidden1", "hidden2", "output")),
    (3, False, True, ("hidden0", "hidden1", "hidden2"), ("hidden1", "hidden2", "output")),
]


@pytest.mark.parametrize(("layers", "residual", "encoder", "ours", "released"), TAPS)
def test_taps_name_the_documented_features(
    layers: int, residual: bool, encoder: bool, ours: tuple[str, ...], released: tuple[str, ...] | None
) -> None:
    """Ours, and those that the D2PPO release hooked (its list: input, blocks, output, shared Identity)."""
    spec = MLPSpec(hidden=(8,) * layers, time_size=4, residual=residual, condition_hidden=(6, 5) if encoder else ())
    network = DiffusionMLP(spec, (3, 2), 4)
    assert tuple(network.tap(name)[0] for name in ("early", "mid", "late")) == ours
    if released:
        assert tuple(network.tap(f"released_{name}")[0] for name in ("early", "mid", "late")) == released
    assert network.tap("all") == tuple(dict.fromkeys(ours))
    _, features = network(torch.zeros(2, 3, 2), torch.zeros(2, dtype=torch.long), network.encode(torch.zeros(2, 4)))
    for name in ("early", "mid", "late", "released_early", "released_mid", "released_late", "all"):
        assert all(tap in features for tap in network.tap(name))


REACHED = {  # tap -> trunk parts its gradient must reach; no other part of the trunk may have any
    "input": {"first"},
    "block0.inside": {"first", "blocks.0.l1"},
    "block0": {"first", "blocks.0.l1", "blocks.0.l2"},
    "block1": {"first", "blocks.0.l1", "blocks.0.l2", "blocks.1.l1", "blocks.1.l2"},
    "output": {"first", "blocks.0.l1", "blocks.0.l2", "blocks.1.l1", "blocks.1.l2", "last"},
    "condition": set(),
}


@pytest.mark.parametrize("tap", REACHED)
def test_a_tapped_feature_reaches_the_weights_before_it_only(tap: str) -> None:
    """Its gradient flows through the same forward pass that made the output, up to where it was tapped."""
    spec = MLPSpec(hidden=(8,) * 5, time_size=4, condition_hidden=(6, 5))
    network = DiffusionMLP(spec, (3, 2), 4)
    _, features = network(torch.randn(5, 3, 2), torch.arange(5), network.encode(torch.randn(5, 4)))
    features[tap].square().sum().backward()
    reached = {
        n.removeprefix("trunk.").rsplit(".", 1)[0]
        for n, p in network.named_parameters()
        if n.startswith("trunk") and p.grad is not None and p.grad.abs().sum() > 0
    }
    assert reached == REACHED[tap]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.encoder.parameters())  # type: ignore[union-attr]
    assert all((p.grad is not None) == (tap != "condition") for p in network.time.parameters())


def test_features_are_of_the_pass_that_made_the_output() -> None:
    """The policy's loss hands out the features of its own forward pass: one call of the network, no second one."""
    policy = small_policy(SamplerSpec())
    calls: list[object] = []
    policy.network.register_forward_hook(lambda module, args, result: calls.append(result))
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    loss = policy.loss(
        Observation(torch.randn(4, 1, 3, dtype=torch.float64)), x, (torch.arange(4), torch.randn_like(x))
    )
    assert len(calls) == 1
    out, features = calls[0]  # type: ignore[misc]
    assert loss.features is features
    torch.testing.assert_close(features["output"].view_as(out), out)


def test_the_block_is_a_residual() -> None:
    """With its second layer at zero a block passes its input on unchanged."""
    block = ResidualBlock(6, "mish", layer_norm=True)
    nn.init.zeros_(block.l2.weight)
    nn.init.zeros_(block.l2.bias)
    x = torch.randn(4, 6)
    assert torch.equal(block(x)[0], x)


def test_widths_that_cannot_be_residual_are_refused() -> None:
    for hidden in ((8, 8), (8, 9, 8)):
        with pytest.raises(ValueError, match="odd number of equal"):
            DiffusionMLP(MLPSpec(hidden=hidden, time_size=4), (3, 2), 4)


@pytest.mark.parametrize(
    "spec",
    [
        MLPSpec(hidden=(8, 8, 8), time_size=5),
        MLPSpec(hidden=(8, 8, 8), time_size=2),
        MLPSpec(hidden=(8, 8, 8), condition_hidden=(5,)),
    ],
)
def test_sizes_that_cannot_be_built_say_so(spec: MLPSpec) -> None:
    """A ValueError that the commands turn into advice, not a division by zero or a failing matrix product later."""
    with pytest.raises(ValueError, match=r"must be even|at least one hidden"):
        DiffusionMLP(spec, (3, 2), 4)
