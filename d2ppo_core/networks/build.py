"""From a spec to its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..contract import Camera
from ..network_specs import NetworkSpec, VisionSpec
from .critics import StateCritic, ViTCritic
from .direct import GMMMLP, GaussianMLP
from .encoder import Network
from .mlp import DiffusionMLP
from .transformer import GaussianTransformer, GMMTransformer
from .unet import UNet1D

NOISE_PREDICTORS: dict[str, Callable[..., Network]] = {"diffusion_mlp": DiffusionMLP, "diffusion_unet": UNet1D}
DIRECT: dict[str, Callable[..., Network]] = {
    "gaussian_mlp": GaussianMLP,
    "gmm_mlp": GMMMLP,
    "gaussian_transformer": GaussianTransformer,
    "gmm_transformer": GMMTransformer,
}


def build_network(
    spec: NetworkSpec,
    chunk_shape: tuple[int, int],
    state_size: int,
    cameras: Sequence[Camera] = (),
    history: int = 1,
    learn_std: float | None = None,
) -> Network:
    """The network of `spec.kind`; ValueError says which size cannot be.

    Args:
        chunk_shape: (H, Da). state_size: To * Do. history: To.
        learn_std: where a learned standard deviation starts, for the kinds that give a distribution.
    """
    if spec.kind in DIRECT:
        return DIRECT[spec.kind](spec, chunk_shape, state_size, cameras, history, learn_std)
    if learn_std is not None:
        raise ValueError(f"{spec.kind} predicts noise and has no standard deviation to learn; leave learn_std out")
    return NOISE_PREDICTORS[spec.kind](spec, chunk_shape, state_size, cameras, history)


def build_critic(
    vision: VisionSpec | None,
    state_size: int,
    cameras: Sequence[Camera] = (),
    history: int = 1,
    hidden: Sequence[int] = (256, 256, 256),
) -> StateCritic | ViTCritic:
    """V(s), from images too where there is `vision`; `state_size` is To * Do and `history` To."""
    if vision is None:
        return StateCritic(state_size, hidden)
    return ViTCritic(vision, state_size, cameras, history, hidden)
