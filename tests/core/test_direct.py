"""Gaussian and mixture MLPs: against NumPy, their taps, and the standard deviation they may learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from d2ppo_core.network_specs import GaussianMLPSpec, GMMMLPSpec, MLPSpec
from d2ppo_core.networks.build import build_network
from network_oracles import Array, assert_features, gaussian_mlp, gmm_mlp, randomised
from oracles import weights_of

CHUNK, STATE = (3, 2), 5
FORMS = [
    {"hidden": (8,) * 5, "layer_norm": True, "activation": "relu"},
    {"hidden": (8, 8, 8), "condition_hidden": (7, 6)},
    {"hidden": (8, 12), "residual": False},
]


def states(count: int) -> Array:
    return np.random.default_rng(2).normal(size=(count, STATE))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gaussian_equals_numpy(form: dict) -> None:
    spec = GaussianMLPSpec(**form)
    network, state = randomised(build_network(spec, CHUNK, STATE)), states(6)
    mean, features = network(network.encode(torch.tensor(state)))
    expected, expected_features = gaussian_mlp(weights_of(network), spec, CHUNK, state)
    assert mean.shape == (6, *CHUNK)
    np.testing.assert_allclose(mean.detach(), expected, atol=1e-8)
    assert_features(features, expected_features)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_mixture_equals_numpy(form: dict) -> None:
    spec = GMMMLPSpec(modes=4, **form)
    network, state = randomised(build_network(spec, CHUNK, STATE)), states(6)
    means, logits, features = network(network.encode(torch.tensor(state)))
    expected, expected_logits, expected_features = gmm_mlp(weights_of(network), spec, CHUNK, state)
    assert means.shape == (6, 4, *CHUNK)
    np.testing.assert_allclose(means.detach(), expected, atol=1e-8)
    np.testing.assert_allclose(logits.detach(), expected_logits, atol=1e-8)
    assert_features(features, expected_features)


@pytest.mark.parametrize("spec", [GaussianMLPSpec(hidden=(8,) * 7), GMMMLPSpec(hidden=(8,) * 7)], ids=lambda s: s.kind)
def test_taps_are_those_of_the_mlp(spec: GaussianMLPSpec | GMMMLPSpec) -> None:
    """As for a DiffusionMLP with the same hidden layers, and each is among the features."""
    network, like = build_network(spec, CHUNK, STATE), build_network(MLPSpec(hidden=spec.hidden), CHUNK, STATE)
    features = network(torch.zeros(2, STATE))[-1]
    for layer in ("early", "mid", "late", "all", "released_early", "released_mid", "released_late"):
        assert network.tap(layer) == like.tap(layer)
        assert all(name in features for name in network.tap(layer))
    with pytest.raises(KeyError):
        network.tap("middle")


@pytest.mark.parametrize(("spec", "shape"), [(GaussianMLPSpec(), (2,)), (GMMMLPSpec(modes=4), (4, 2))])
def test_a_learned_deviation_starts_where_told(spec: GaussianMLPSpec | GMMMLPSpec, shape: tuple[int, ...]) -> None:
    network = build_network(spec, CHUNK, STATE, learn_std=0.1)
    assert network.log_variance.shape == shape
    torch.testing.assert_close(network.log_variance.detach(), torch.full(shape, math.log(0.01)))
    assert any(p is network.log_variance for p in network.parameters())
    assert build_network(spec, CHUNK, STATE).log_variance is None


def test_a_noise_predictor_has_no_deviation() -> None:
    with pytest.raises(ValueError, match="no standard deviation"):
        build_network(MLPSpec(), CHUNK, STATE, learn_std=0.1)
