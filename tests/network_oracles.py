"""Independent float64 NumPy forward passes of the networks, written from the papers' descriptions with explicit loops.

As in `oracles.py`, only weights and spec fields come from `d2ppo_core`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import erf

import numpy as np
import torch
from torch import nn

from d2ppo_core.contract import Camera
from d2ppo_core.network_specs import GaussianMLPSpec, GMMMLPSpec, VisionSpec
from oracles import Array, Weights, layer_norm, linear, plain_trunk, residual_trunk

Features = dict[str, Array]


def camera(name: str = "agentview", height: int = 96, width: int = 96) -> Camera:
    return Camera(name=name, height=height, width=width, field_of_view=45.0)


def randomised(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """In float64, every weight moved off its initial value: zeros, ones and equal copies hide errors."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.double().parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def trunk(w: Weights, name: str, x: Array, spec: object) -> tuple[Array, Features]:
    """The MLP of an MLP spec."""
    hidden, activation, norm = spec.hidden, spec.activation, spec.layer_norm  # type: ignore[attr-defined]
    if spec.residual:  # type: ignore[attr-defined]
        return residual_trunk(w, name, x, (len(hidden) - 1) // 2, activation, norm)
    return plain_trunk(w, name, x, len(hidden), activation, norm)


def norm(w: Weights, name: str, x: Array) -> Array:
    return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


# --- attention --------------------------------------------------------------------------------------------------------


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2.0)))


def attention(w: Weights, name: str, x: Array, memory: Array, heads: int) -> Array:
    """x (N, e) attends to memory (P, e): one sample, head after head, query after query."""
    e = x.shape[1]
    size = e // heads
    query, both = linear(w, f"{name}.query", x), linear(w, f"{name}.key_value", memory)
    key, value = both[:, :e], both[:, e:]
    mixed = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for n in range(len(x)):
            score = np.array([query[n, part] @ key[p, part] / np.sqrt(size) for p in range(len(memory))])
            weight = np.exp(score) / np.exp(score).sum()
            mixed[n, part] = sum(weight[p] * value[p, part] for p in range(len(memory)))
    return linear(w, f"{name}.out", mixed)


def transformer_layer(w: Weights, name: str, x: Array, heads: int, memory: Array | None = None) -> Array:
    """One sample: x + self-attention, + cross-attention where there is a memory, + feed-forward; each after a norm."""
    y = norm(w, f"{name}.norm_attention", x)
    x = x + attention(w, f"{name}.attention", y, y, heads)
    if memory is not None:
        x = x + attention(w, f"{name}.cross", norm(w, f"{name}.norm_cross", x), memory, heads)
    y = norm(w, f"{name}.norm_feed", x)
    return x + linear(w, f"{name}.feed.2", gelu(linear(w, f"{name}.feed.0", y)))


# --- vision -----------------------------------------------------------------------------------------------------------


def conv2d(x: Array, kernel: Array, bias: Array, stride: int) -> Array:
    """x (C, H, W), kernel (O, C, k, k), no padding -> (O, h, w)."""
    k = kernel.shape[-1]
    h, w = (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
    out = np.zeros((len(kernel), h, w))
    for i in range(h):
        for j in range(w):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = (kernel * window).sum((1, 2, 3)) + bias
    return out


def vit(w: Weights, name: str, spec: VisionSpec, image: Array) -> Array:
    """One image (3, H, W) of 0..255 -> tokens (P, width)."""
    x = conv2d(image / 255.0 - 0.5, w[f"{name}.embed.0.weight"], w[f"{name}.embed.0.bias"], 4)
    x = conv2d(np.maximum(x, 0), w[f"{name}.embed.2.weight"], w[f"{name}.embed.2.bias"], 2)
    tokens = x.reshape(len(x), -1).T + w[f"{name}.position"]  # row after row of the image
    for n in range(spec.depth):
        tokens = transformer_layer(w, f"{name}.layers.{n}", tokens, spec.heads)
    return norm(w, f"{name}.norm", tokens)


def spatial_embedding(w: Weights, name: str, tokens: Array, state: Array) -> Array:
    """One image's tokens (P, width) and the state -> features."""
    total = 0.0
    for channel in range(tokens.shape[1]):
        joined = np.concatenate([tokens[:, channel], state])
        projected = np.maximum(norm(w, f"{name}.project.1", linear(w, f"{name}.project.0", joined)), 0)
        total = total + w[f"{name}.weight"][channel] * projected
    return total


def vision_encoder(w: Weights, name: str, spec: VisionSpec, state: Array, images: Array) -> Array:
    """state (B, To*Do), images (B, To, cameras, 3, H, W) -> code: by time step, then camera, then the state."""
    codes = []
    for b in range(len(state)):
        features = [
            spatial_embedding(w, f"{name}.embeddings.{n}", vit(w, f"{name}.vit", spec, image), state[b])
            for step in images[b]
            for n, image in enumerate(step)
        ]
        codes.append(np.concatenate([*features, state[b]]))
    return np.array(codes)


# --- Gaussian and mixture MLPs ----------------------------------------------------------------------------------------


def code_of(
    w: Weights, spec: GaussianMLPSpec | GMMMLPSpec, state: Array, images: Array | None = None
) -> tuple[Array, Features]:
    """The encoder's output, and "condition" where it was learned."""
    if spec.vision:
        assert images is not None
        code = vision_encoder(w, "encoder", spec.vision, state, images)
        return code, {"condition": code}
    if spec.condition_hidden:
        code, _ = plain_trunk(w, "encoder.trunk", state, len(spec.condition_hidden) - 1, spec.activation)
        return code, {"condition": code}
    return state, {}


def gaussian_mlp(
    w: Weights, spec: GaussianMLPSpec, shape: Sequence[int], state: Array, images: Array | None = None
) -> tuple[Array, Features]:
    """Means (B, H, Da) and features."""
    code, extra = code_of(w, spec, state, images)
    out, features = trunk(w, "means", code, spec)
    return np.tanh(out).reshape(-1, *shape), extra | features


def gmm_mlp(w: Weights, spec: GMMMLPSpec, shape: Sequence[int], state: Array) -> tuple[Array, Array, Features]:
    """Means (B, M, H, Da), logits (B, M) and features."""
    code, extra = code_of(w, spec, state)
    out, features = trunk(w, "means", code, spec)
    logits, _ = trunk(w, "logits", code, spec)
    return np.tanh(out).reshape(len(state), spec.modes, *shape), logits, extra | features
