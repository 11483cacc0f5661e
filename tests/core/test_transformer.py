"""Transformers: against NumPy, their taps and what they reach, and how they start."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2ppo_core.network_specs import GaussianTransformerSpec, GMMTransformerSpec, VisionSpec
from d2ppo_core.networks.build import build_network
from network_oracles import Array, assert_features, camera, gaussian_transformer, gmm_transformer, randomised
from oracles import weights_of

CHUNK, STATE = (3, 2), 5
GAUSSIAN = GaussianTransformerSpec(width=8, depth=2, heads=2)
GMM = GMMTransformerSpec(modes=4, width=6, depth=3, heads=3)


def states(count: int) -> Array:
    return np.random.default_rng(2).normal(size=(count, STATE))


def test_gaussian_equals_numpy() -> None:
    network, state = randomised(build_network(GAUSSIAN, CHUNK, STATE)), states(4)
    mean, features = network(network.encode(torch.tensor(state)))
    expected, expected_features = gaussian_transformer(weights_of(network), GAUSSIAN, state)
    assert mean.shape == (4, *CHUNK)
    np.testing.assert_allclose(mean.detach(), expected, atol=1e-8)
    assert_features(features, expected_features)


def test_mixture_equals_numpy() -> None:
    network, state = randomised(build_network(GMM, CHUNK, STATE)), states(4)
    means, logits, features = network(network.encode(torch.tensor(state)))
    expected, expected_logits, expected_features = gmm_transformer(weights_of(network), GMM, state)
    assert means.shape == (4, 4, *CHUNK)
    np.testing.assert_allclose(means.detach(), expected, atol=1e-8)
    np.testing.assert_allclose(logits.detach(), expected_logits, atol=1e-8)
    assert_features(features, expected_features)


@pytest.mark.parametrize("spec", [GAUSSIAN, GMM], ids=lambda s: s.kind)
def test_one_that_sees_takes_the_code_as_a_state(spec: GaussianTransformerSpec | GMMTransformerSpec) -> None:
    """The code is a feature; with it in the state's place, the blind network gives the same."""
    vision = VisionSpec(width=8, heads=2, features=6)
    sees = spec.model_copy(update={"vision": vision})
    network = randomised(build_network(sees, CHUNK, STATE, (camera("a", 16, 20),), learn_std=0.1))
    images = torch.randint(256, (3, 1, 1, 3, 16, 20), dtype=torch.uint8)
    code = network.encode(torch.tensor(states(3)), images)
    blind = build_network(spec, CHUNK, code.shape[1], learn_std=0.1).double()
    blind.load_state_dict({n: value for n, value in network.state_dict().items() if not n.startswith("encoder")})
    *out, features = network(code)
    torch.testing.assert_close(out, list(blind(code)[:-1]))
    assert features["condition"] is code


@pytest.mark.parametrize(
    ("depth", "taps"), [(1, (0, 0, 0)), (2, (0, 0, 1)), (3, (0, 1, 2)), (4, (0, 1, 2)), (8, (1, 3, 5))]
)
def test_taps_are_layers_by_quarters(depth: int, taps: tuple[int, ...]) -> None:
    for spec in (GAUSSIAN, GMM):
        network = build_network(spec.model_copy(update={"depth": depth}), CHUNK, STATE)
        names = tuple(f"layer{n}" for n in taps)
        assert tuple(network.tap(layer)[0] for layer in ("early", "mid", "late")) == names
        assert network.tap("all") == tuple(dict.fromkeys(names))
        assert all(name in network(torch.zeros(2, STATE))[-1] for name in names)
        with pytest.raises(KeyError):
            network.tap("released_early")


@pytest.mark.parametrize(
    ("tap", "reached"),
    [
        ("layer0", {"layers.0"}),
        ("layer1", {"layers.0", "layers.1"}),
        ("output", {"layers.0", "layers.1", "layers.2", "norm.weight", "norm.bias"}),
    ],
)
def test_a_tapped_feature_reaches_the_weights_before_it_only(tap: str, reached: set[str]) -> None:
    """All before it but the queries and keys that choose among one token."""
    network = randomised(build_network(GMM, CHUNK, STATE))
    network(torch.tensor(states(4)))[-1][tap].square().sum().backward()
    moved, still = set(), set()
    for name, p in network.decoder.named_parameters():
        (moved if p.grad is not None and p.grad.abs().max() > 1e-12 else still).add(name)
    first = {"token", "remember", "queries", "position"}
    parts = {n if n.startswith("norm") else ".".join(n.split(".")[: 1 + n.startswith("layers")]) for n in moved}
    assert parts == reached | first
    touched = {n for n in still if any(n.startswith(f"{layer}.") for layer in reached)}
    assert all("cross.query" in n or "norm_cross" in n for n in touched)
    assert (network.means.weight.grad is not None) == (tap == "output")
    assert network.logits.weight.grad is None


@pytest.mark.parametrize("spec", [GaussianTransformerSpec(), GMMTransformerSpec()], ids=lambda s: s.kind)
def test_it_starts_as_published(spec: GaussianTransformerSpec | GMMTransformerSpec) -> None:
    """Linear weights, queries and the token's position N(0, 0.02), biases 0; an encoder that sees starts as its own."""
    torch.manual_seed(0)
    network = build_network(spec, CHUNK, STATE)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
            assert not module.bias.any()
    for p in (network.decoder.queries, network.decoder.position):
        assert p.std().item() == pytest.approx(0.02, rel=0.2)
    vision = spec.model_copy(update={"vision": VisionSpec()})
    project = build_network(vision, CHUNK, STATE, (camera(),)).encoder.embeddings[0].project[0]
    assert project.bias.any()


def test_a_width_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="width of 10 cannot be split into 4 attention heads"):
        build_network(GaussianTransformerSpec(width=10), CHUNK, STATE)
