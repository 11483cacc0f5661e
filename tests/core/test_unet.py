"""UNet1D: against NumPy, its taps and what they reach, and the sizes it cannot have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from d2ppo_core.network_specs import UNetSpec, VisionSpec
from d2ppo_core.networks.build import build_network
from d2ppo_core.networks.unet import UNet1D
from network_oracles import assert_features, camera, frequencies, randomised, unet
from oracles import weights_of

STATE = 5
FORMS = [  # spec, (H, Da)
    (UNetSpec(width=4, multipliers=(1, 2), time_size=4, groups=2), (4, 3)),
    (UNetSpec(width=4, multipliers=(1, 1, 2), time_size=6, groups=4, kernel=3, norm_epsilon=1e-2), (8, 2)),
    (UNetSpec(width=4, multipliers=(2, 1), time_size=4, groups=2, condition_hidden=(7, 6)), (6, 2)),
    (UNetSpec(width=4, multipliers=(1,), time_size=4, groups=1), (3, 2)),
]


def inputs(chunk: tuple[int, int], count: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, *chunk)), np.array([0, 7, 99])[:count], rng.normal(size=(count, STATE))


@pytest.mark.parametrize(("spec", "chunk"), FORMS, ids=lambda v: str(getattr(v, "multipliers", "")))
def test_forward_equals_numpy(spec: UNetSpec, chunk: tuple[int, int]) -> None:
    """Output and every feature, for levels that widen, stay or narrow."""
    network, (x, t, state) = randomised(build_network(spec, chunk, STATE)), inputs(chunk)
    exact = torch.tensor(frequencies(spec.time_size))
    torch.testing.assert_close(network.time.frequencies, exact, atol=1e-6, rtol=0)
    network.time.frequencies = exact  # the network's are float32
    out, features = network(torch.tensor(x), torch.tensor(t), network.encode(torch.tensor(state)))
    expected, expected_features = unet(weights_of(network), spec, x, t, state)
    np.testing.assert_allclose(out.detach(), expected, atol=1e-8)
    assert_features(features, expected_features)


def test_one_that_sees_takes_the_code_as_a_state() -> None:
    """With vision, the UNet is the blind one with the code in the state's place."""
    spec, chunk, camera_pair = FORMS[0][0], (4, 3), (camera("a", 20, 16), camera("b", 20, 16))
    vision = VisionSpec(width=8, heads=2, features=6)
    network = randomised(build_network(spec.model_copy(update={"vision": vision}), chunk, STATE, camera_pair))
    images = torch.randint(256, (3, 1, 2, 3, 20, 16), dtype=torch.uint8)
    x, t, state = map(torch.tensor, inputs(chunk))
    code = network.encode(state, images)
    assert torch.equal(code[:, -STATE:], state)
    blind = build_network(spec, chunk, code.shape[1]).double()
    blind.load_state_dict({n: value for n, value in network.state_dict().items() if not n.startswith("encoder")})
    torch.testing.assert_close(network(x, t, code)[0], blind(x, t, code)[0])


def test_taps_are_the_ends_of_the_ways() -> None:
    network = build_network(UNetSpec(width=4, multipliers=(1, 2, 4), groups=2), (8, 2), STATE)
    assert [network.tap(layer) for layer in ("early", "mid", "late")] == [("down2",), ("middle",), ("up1",)]
    assert network.tap("all") == ("down2", "middle", "up1")
    flat = build_network(UNetSpec(width=4, multipliers=(1,), groups=2), (8, 2), STATE)
    assert [flat.tap(layer) for layer in ("early", "mid", "late")] == [("down0",), ("middle",), ("middle",)]
    for layer in ("released_early", "released_mid", "released_late"):
        with pytest.raises(KeyError):
            network.tap(layer)


REACHED = {
    "down0": {"down.0"},
    "down1": {"down.0", "shrink.0", "down.1"},
    "middle": {"down.0", "shrink.0", "down.1", "middle"},
    "up0": {"down.0", "shrink.0", "down.1", "middle", "up.0", "grow.0"},
    "output": {"down.0", "shrink.0", "down.1", "middle", "up.0", "grow.0", "last.0", "last.1"},
}


def reached(network: UNet1D, feature: Tensor) -> set[str]:
    """Parts of the network, as "list.index" or by name, to which the feature has a gradient; all weights or none."""
    feature.square().sum().backward()
    parts: dict[str, list[bool]] = {}
    for name, p in network.named_parameters():
        first, second, *_ = name.split(".")
        part = f"{first}.{second}" if second.isdigit() else first
        parts.setdefault(part, []).append(p.grad is not None and bool(p.grad.any()))
    assert all(all(found) or not any(found) for found in parts.values())
    return {part for part, found in parts.items() if all(found)}


@pytest.mark.parametrize("tap", REACHED)
def test_a_tapped_feature_reaches_the_weights_before_it_only(tap: str) -> None:
    spec, chunk = UNetSpec(width=4, multipliers=(1, 2), time_size=4, groups=2, condition_hidden=(7, 6)), (4, 3)
    network, (x, t, state) = randomised(build_network(spec, chunk, STATE)), map(torch.tensor, inputs(chunk))
    _, features = network(x, t, network.encode(state))
    assert reached(network, features[tap]) == REACHED[tap] | {"encoder", "time"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (UNetSpec(multipliers=(1, 2, 4)), "must be a multiple of 4, not 6; choose"),
        (UNetSpec(kernel=4), "must be odd, not 4"),
        (UNetSpec(width=20), "20 channels cannot be normalised in 8 groups"),
        (UNetSpec(condition_hidden=(5,)), "at least one hidden"),
        (UNetSpec(time_size=5), "must be even"),
    ],
)
def test_sizes_that_cannot_be_built_say_so(spec: UNetSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(spec, (6, 2), STATE)
