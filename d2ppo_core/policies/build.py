"""The policy that a contract describes."""

from __future__ import annotations

from ..contract import PolicySpec
from ..errors import UserError
from .base import Policy
from .diffusion import DiffusionPolicy
from .direct import GaussianPolicy, GMMPolicy

POLICIES: dict[str, tuple[type[Policy], tuple[str, ...]]] = {  # sampler -> policy, networks that it can use
    "ddpm": (DiffusionPolicy, ("diffusion_mlp", "diffusion_unet")),
    "ddim": (DiffusionPolicy, ("diffusion_mlp", "diffusion_unet")),
    "gaussian": (GaussianPolicy, ("gaussian_mlp", "gaussian_transformer")),
    "gmm": (GMMPolicy, ("gmm_mlp", "gmm_transformer")),
}


def require_fit(spec: PolicySpec) -> None:
    """Refuse a network that does not fit the sampler, or that would silently leave out the task's cameras."""
    network, networks = spec.network, POLICIES[spec.sampler.kind][1]
    if network.kind not in networks:
        raise UserError(
            f"the sampler {spec.sampler.kind} draws from {' or '.join(networks)}, not from {network.kind}; choose a "
            "matching policy="
        )
    if (network.vision is not None) != bool(spec.observation.cameras):
        names = ", ".join(camera.name for camera in spec.observation.cameras) or "none"
        sees = "looks at images" if network.vision else "sees no images"
        raise UserError(
            f"the network {network.kind} {sees}, but the task has these cameras: {names}; choose a policy= whose "
            "network.vision fits the task"
        )


def build_policy(spec: PolicySpec) -> Policy:
    """A policy with fresh weights and identity statistics; a `UserError` says why it cannot be."""
    require_fit(spec)
    try:
        return POLICIES[spec.sampler.kind][0](spec)
    except ValueError as error:
        raise UserError(f"policy.network cannot be built: {error}") from error
