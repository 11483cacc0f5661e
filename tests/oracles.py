"""Independent float64 NumPy readings of the papers' formulas, for the tests of the mathematics. No code is shared with
`d2ppo_core`; only weights and contract fields are taken from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from d2ppo_core.contract import (
    ActionSpec,
    LowDim,
    ObservationSpec,
    PolicySpec,
    Provenance,
    SimulatorSpec,
)
from d2ppo_core.network_specs import MLPSpec, SamplerSpec
from d2ppo_core.policies.base import Policy
from d2ppo_core.policies.build import build_policy

Array = np.ndarray
Weights = dict[str, Array]


def small_spec(
    sampler: SamplerSpec, network: MLPSpec | None = None, horizon: int = 3, executed: int = 2, history: int = 1
) -> PolicySpec:
    """Two action dimensions, three state dimensions."""
    return PolicySpec(
        task="toy",
        observation=ObservationSpec(lowdim=(LowDim(name="a", size=1), LowDim(name="b", size=2)), history=history),
        action=ActionSpec(meaning="planar_delta", position_scale=0.1, rotation_scale=0.0, gripper="none"),
        horizon=horizon,
        executed=executed,
        network=network or MLPSpec(hidden=(8, 8, 8), time_size=4),
        sampler=sampler,
        provenance=Provenance(
            stage="pretrain",
            dataset="none",
            dataset_digest="",
            code_version="",
            seed=0,
            simulator=SimulatorSpec(name="toy", version="1", environment="Reach", controller="none"),
        ),
    )


def small_policy(sampler: SamplerSpec, seed: int = 0, double: bool = True, **spec: object) -> Policy:
    """A policy with random weights, by default in float64."""
    torch.manual_seed(seed)
    policy = build_policy(small_spec(sampler, **spec))  # type: ignore[arg-type]
    return policy.double() if double else policy


def weights_of(module: nn.Module) -> Weights:
    """Every parameter as float64."""
    return {name: p.detach().numpy().astype(np.float64) for name, p in module.named_parameters()}


# --- networks ---------------------------------------------------------------------------------------------------------


def mish(x: Array) -> Array:
    return x * np.tanh(np.logaddexp(0.0, x))


def activate(name: str, x: Array) -> Array:
    return mish(x) if name == "mish" else np.maximum(x, 0.0)


def layer_norm(x: Array, scale: Array, shift: Array, eps: float) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * scale + shift


def linear(w: Weights, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def residual_trunk(
    w: Weights, prefix: str, x: Array, blocks: int, activation: str, norm: bool
) -> tuple[Array, dict[str, Array]]:
    """Linear, blocks of x + l2(act(norm2(l1(act(norm1 x))))), Linear."""
    h = linear(w, f"{prefix}.first", x)
    features = {"input": h}
    for n in range(blocks):
        name = f"{prefix}.blocks.{n}"
        y = layer_norm(h, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"], 1e-6) if norm else h
        inside = linear(w, f"{name}.l1", activate(activation, y))
        y = layer_norm(inside, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"], 1e-6) if norm else inside
        h = h + linear(w, f"{name}.l2", activate(activation, y))
        features[f"block{n}.inside"], features[f"block{n}"] = inside, h
    out = linear(w, f"{prefix}.last", h)
    return out, features | {"output": out}


def plain_trunk(
    w: Weights, prefix: str, x: Array, hidden: int, activation: str, norm: bool = False
) -> tuple[Array, dict[str, Array]]:
    """Linear (LayerNorm) activation for each hidden layer, then Linear."""
    features, h = {}, x
    for n in range(hidden):
        h = linear(w, f"{prefix}.first" if n == 0 else f"{prefix}.blocks.{n - 1}", h)
        if norm:
            h = layer_norm(h, w[f"{prefix}.norms.{n}.weight"], w[f"{prefix}.norms.{n}.bias"], 1e-5)
        h = features[f"hidden{n}"] = activate(activation, h)
    out = linear(w, f"{prefix}.last", h)
    return out, features | {"output": out}


def diffusion_mlp(w: Weights, spec: MLPSpec, x: Array, t: Array, state: Array) -> tuple[Array, dict[str, Array]]:
    """eps_theta(x (B, H, Da), t (B,), state (B, To*Do)) and its features."""
    half = spec.time_size // 2
    angle = t[:, None].astype(np.float64) * np.exp(-np.log(10000.0) / (half - 1) * np.arange(half))
    time = linear(
        w, "time.layers.2", mish(linear(w, "time.layers.0", np.concatenate([np.sin(angle), np.cos(angle)], 1)))
    )
    condition, extra = state, {}
    if spec.condition_hidden:
        condition, _ = plain_trunk(w, "encoder.trunk", state, len(spec.condition_hidden) - 1, spec.activation)
        extra = {"condition": condition}
    joined = np.concatenate([x.reshape(len(x), -1), time, condition], 1)
    if spec.residual:
        out, features = residual_trunk(
            w, "trunk", joined, (len(spec.hidden) - 1) // 2, spec.activation, spec.layer_norm
        )
    else:
        out, features = plain_trunk(w, "trunk", joined, len(spec.hidden), spec.activation, spec.layer_norm)
    return out.reshape(x.shape), extra | features


# --- diffusion --------------------------------------------------------------------------------------------------------


def betas(K: int) -> Array:
    """Cosine schedule, one step at a time."""

    def f(u: float) -> float:
        return float(np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2)

    return np.array([min(1 - f((i + 1) / K) / f(i / K), 0.999) for i in range(K)])


def alpha_bars(K: int) -> Array:
    products, product = [], 1.0
    for beta in betas(K):
        product *= 1 - beta
        products.append(product)
    return np.array(products)


@dataclass
class Chain:
    """What one denoising loop did, noisiest step first."""

    t: list[int] = field(default_factory=list)
    x: list[Array] = field(default_factory=list)  # S+1 of them
    mean: list[Array] = field(default_factory=list)
    sigma: list[float] = field(default_factory=list)  # of the scheme, without floors
    std: list[float] = field(default_factory=list)  # of the noise really added


def denoise_mean(
    s: SamplerSpec, eta: float, i: int, x: Array, predict: Callable[[Array, int], Array]
) -> tuple[int, Array, float]:
    """(t, mean, sigma) of step i, 0 the noisiest."""
    K, abar = s.train_steps, alpha_bars(s.train_steps)
    stride = K // s.steps
    t = (s.steps - 1 - i) * stride
    before = abar[t - stride] if t > 0 else 1.0
    x0 = np.clip((x - np.sqrt(1 - abar[t]) * predict(x, t)) / np.sqrt(abar[t]), -s.sample_clip, s.sample_clip)
    if s.kind == "ddpm":
        beta = betas(K)[t]
        mean = beta * np.sqrt(before) / (1 - abar[t]) * x0 + (1 - before) * np.sqrt(1 - beta) / (1 - abar[t]) * x
        return t, mean, float(np.sqrt(beta * (1 - before) / (1 - abar[t])))
    sigma = eta * np.sqrt((1 - before) / (1 - abar[t]) * (1 - abar[t] / before))
    noise = (x - np.sqrt(abar[t]) * x0) / np.sqrt(1 - abar[t])  # of the clamped estimate
    return t, np.sqrt(before) * x0 + np.sqrt(max(0.0, 1 - before - sigma**2)) * noise, float(sigma)


def denoise(s: SamplerSpec, explore: bool, noise: Array, predict: Callable[[Array, int], Array]) -> Chain:
    """The whole loop from explicit noise (B, S+1, H, Da)."""
    chain = Chain(x=[noise[:, 0]])
    for i in range(s.steps):
        t, mean, sigma = denoise_mean(s, s.eta if explore else 0.0, i, chain.x[-1], predict)
        if explore:
            std = max(sigma, s.min_sampling_std)
        elif s.kind == "ddim" or t == 0:
            std = 0.0
        else:
            std = max(sigma, 1e-3)
        chain.x.append(mean + std * np.clip(noise[:, i + 1], -s.noise_clip, s.noise_clip))
        chain.t.append(t)
        chain.mean.append(mean)
        chain.sigma.append(sigma)
        chain.std.append(std)
    return chain


def log_normal(x: Array, mean: Array, std: float) -> Array:
    """Element-wise log N(x; mean, std^2)."""
    return -((x - mean) ** 2) / (2 * std**2) - np.log(std * np.sqrt(2 * np.pi))
