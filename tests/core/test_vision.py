"""Vision: the encoder and its critic against NumPy, cameras that share a trunk, and the random shift."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2ppo_core.network_specs import GaussianMLPSpec, MLPSpec, VisionSpec
from d2ppo_core.networks.build import build_critic, build_network
from d2ppo_core.networks.critics import ViTCritic
from d2ppo_core.networks.vision import VisionEncoder, ViT, draw_shift, random_shift
from network_oracles import assert_features, camera, gaussian_mlp, randomised, vision_encoder
from oracles import residual_trunk, weights_of

SMALL = VisionSpec(width=8, depth=2, heads=2, features=6)
PAIR = (camera("left", 24, 32), camera("right", 24, 32))
STATE, HISTORY = 5, 2


def views(count: int, cameras: int = 2, history: int = HISTORY, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """(count, To, cameras, 3, H, W) uint8."""
    return np.random.default_rng(1).integers(0, 256, (count, history, cameras, 3, *size), dtype=np.uint8)


def states(count: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, STATE))


def small_encoder() -> VisionEncoder:
    return randomised(VisionEncoder(SMALL, STATE, PAIR, HISTORY))  # type: ignore[return-value]


def test_encoder_equals_numpy() -> None:
    """Two cameras, two time steps, an image that is not square; features lie by time step, then camera."""
    encoder, state, images = small_encoder(), states(3), views(3)
    code = encoder(torch.tensor(state), torch.tensor(images))
    assert code.shape == (3, encoder.size)
    named = {f"encoder.{name}": value for name, value in weights_of(encoder).items()}
    np.testing.assert_allclose(code.detach(), vision_encoder(named, "encoder", SMALL, state, images), atol=1e-8)


def test_critic_equals_numpy() -> None:
    critic = randomised(build_critic(SMALL, STATE, PAIR, HISTORY, hidden=(8, 8, 8)))
    state, images = states(3), views(3)
    w = weights_of(critic)
    expected, _ = residual_trunk(w, "trunk", vision_encoder(w, "encoder", SMALL, state, images), 1, "mish", False)
    value = critic(torch.tensor(state), torch.tensor(images))
    np.testing.assert_allclose(value.detach(), expected[:, 0], atol=1e-8)


def test_a_policy_that_sees_equals_numpy() -> None:
    """The code is a feature of its own, "condition"."""
    spec = GaussianMLPSpec(hidden=(8, 8, 8), vision=SMALL)
    network, state, images = randomised(build_network(spec, (3, 2), STATE, PAIR, HISTORY)), states(2), views(2)
    mean, features = network(network.encode(torch.tensor(state), torch.tensor(images)))
    expected, expected_features = gaussian_mlp(weights_of(network), spec, (3, 2), state, images)
    np.testing.assert_allclose(mean.detach(), expected, atol=1e-8)
    assert_features(features, expected_features)


def test_a_noise_predictor_that_sees_takes_the_code_as_a_state() -> None:
    """With vision, DiffusionMLP is the blind one with the code in the state's place."""
    spec = MLPSpec(hidden=(8, 8, 8), time_size=4, vision=SMALL)
    network = randomised(build_network(spec, (3, 2), STATE, PAIR, HISTORY))
    code = network.encode(torch.tensor(states(4)), torch.tensor(views(4)))
    blind = build_network(MLPSpec(hidden=(8, 8, 8), time_size=4), (3, 2), code.shape[1]).double()
    shared = {name: value for name, value in network.state_dict().items() if not name.startswith("encoder")}
    blind.load_state_dict(shared)
    x, t = torch.randn(4, 3, 2, dtype=torch.float64), torch.arange(4)
    out, features = network(x, t, code)
    torch.testing.assert_close(out, blind(x, t, code)[0])
    assert features["condition"] is code
    assert network.tap("released_late") == ("output",)


def test_two_cameras_share_one_trunk() -> None:
    """Its parameters appear once, both cameras train it, and each trains only its own embedding."""
    encoder = small_encoder()
    single = VisionEncoder(SMALL, STATE, PAIR[:1], HISTORY)

    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert size(encoder) - size(single) == size(single.embeddings[0])
    code = encoder(torch.tensor(states(2)), torch.tensor(views(2)))
    code[:, : SMALL.features].sum().backward()  # the left camera at the first time step
    assert all(p.grad.any() for p in encoder.vit.parameters())
    assert all(p.grad.any() for p in encoder.embeddings[0].parameters())
    assert not any(p.grad.any() for p in encoder.embeddings[1].parameters())


def test_one_image_changes_its_own_features_only() -> None:
    """Cameras, time steps and samples do not mix before the head."""
    encoder, state, images = small_encoder(), torch.tensor(states(2)), torch.tensor(views(2))
    before = encoder(state, images)
    images[1, 0, 1] += 1
    changed = (encoder(state, images) != before).nonzero().tolist()
    block = range(SMALL.features, 2 * SMALL.features)  # time step 0, camera 1
    assert {row for row, _ in changed} == {1}
    assert {column for _, column in changed} <= set(block)
    assert changed


def test_the_vit_starts_as_published() -> None:
    """Linear weights and positions N(0, 0.02), no bias; 121 tokens of 96 x 96 pixels."""
    torch.manual_seed(0)
    vit = ViT(VisionSpec(), 96, 96)
    assert vit.position.shape == (121, 128)
    assert vit.position.std().item() == pytest.approx(0.02, rel=0.05)
    for module in vit.layers.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        ((), "needs a camera"),
        ((camera("a", 24, 24), camera("b", 32, 24)), "a 24 x 24, b 32 x 24"),
        ((camera("a", 24, 15),), "24 x 15 pixels is too small"),
    ],
)
def test_cameras_that_cannot_be_seen_are_refused(cameras: tuple, message: str) -> None:
    for build in (
        lambda: build_network(MLPSpec(vision=SMALL), (3, 2), STATE, cameras),
        lambda: ViTCritic(SMALL, STATE, cameras),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_the_smallest_image_is_one_token() -> None:
    code = VisionEncoder(SMALL, STATE, (camera("a", 16, 16),), 1)(
        torch.zeros(2, STATE), torch.zeros(2, 1, 1, 3, 16, 16)
    )
    assert code.shape == (2, SMALL.features + STATE)


def test_sizes_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        build_network(MLPSpec(vision=SMALL, condition_hidden=(6, 5)), (3, 2), STATE, PAIR)
    with pytest.raises(ValueError, match="width of 8 cannot be split into 3 attention heads"):
        build_network(MLPSpec(vision=VisionSpec(width=8, heads=3)), (3, 2), STATE, PAIR)


@pytest.mark.parametrize(("pad", "size"), [(4, (9, 9)), (2, (5, 11)), (3, (8, 1)), (0, (4, 6))])
def test_shift_equals_padding_and_cutting(pad: int, size: tuple[int, int]) -> None:
    """Every pixel looked up in a padded copy of its own image; every pair of offsets occurs."""
    offsets = [(dy, dx) for dy in range(2 * pad + 1) for dx in range(2 * pad + 1)]
    images = views(len(offsets), size=size)
    rng = np.random.default_rng(0)
    drawn = np.array([rng.permutation(offsets) for _ in range(2 * HISTORY)])  # [To*cameras, B, 2]
    drawn = drawn.transpose(1, 0, 2).reshape(len(offsets), HISTORY, 2, 2)
    shifted = random_shift(torch.tensor(images), torch.tensor(drawn), pad)
    assert shifted.dtype == torch.uint8
    for index in np.ndindex(drawn.shape[:-1]):
        padded = np.pad(images[index], ((0, 0), (pad, pad), (pad, pad)), mode="edge")
        dy, dx = drawn[index]
        np.testing.assert_array_equal(shifted[index], padded[:, dy : dy + size[0], dx : dx + size[1]])


def test_drawn_shifts_are_uniform_and_keyed() -> None:
    def drawn(seed: int) -> torch.Tensor:
        return draw_shift((900, 2), 4, torch.Generator().manual_seed(seed))

    offsets = drawn(0)
    assert offsets.shape == (900, 2, 2)
    assert torch.equal(offsets, drawn(0))
    assert not torch.equal(offsets, drawn(1))
    counts = torch.bincount(offsets.flatten(), minlength=9)  # 3600 draws of 9 values, 400 each
    assert len(counts) == 9
    assert (counts - 400).abs().max() < 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_sees_the_same() -> None:
    """Attention chooses its kernel by itself, and the shift is exact."""
    encoder, state, images = small_encoder(), torch.tensor(states(2)), torch.tensor(views(2))
    offsets = draw_shift((2, HISTORY, 2), 3, torch.Generator().manual_seed(0))
    shifted = random_shift(images, offsets, 3)
    assert torch.equal(random_shift(images.cuda(), offsets.cuda(), 3).cpu(), shifted)
    expected = encoder(state, shifted)
    torch.testing.assert_close(encoder.cuda()(state.cuda(), shifted.cuda()).cpu(), expected)
