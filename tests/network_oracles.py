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
from d2ppo_core.network_specs import (
    GaussianMLPSpec,
    GaussianTransformerSpec,
    GMMMLPSpec,
    GMMTransformerSpec,
    UNetSpec,
    VisionSpec,
)
from oracles import Array, Weights, layer_norm, linear, mish, plain_trunk, residual_trunk

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


def assert_features(features: dict[str, torch.Tensor], expected: Features) -> None:
    """The same names in the same order, and the same values."""
    assert list(features) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(features[name].detach(), value, atol=1e-8, err_msg=name)


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


# --- transformers -----------------------------------------------------------------------------------------------------


def decoder(w: Weights, depth: int, heads: int, code: Array) -> tuple[Array, list[Array]]:
    """One sample's code (C,) -> vectors of the chunk's steps (H, width), and each layer's output."""
    token = linear(w, "decoder.token", code) + w["decoder.position"]
    memory = linear(w, "decoder.remember.2", mish(linear(w, "decoder.remember.0", token)))[None]
    h, outputs = w["decoder.queries"], []
    for n in range(depth):
        h = transformer_layer(w, f"decoder.layers.{n}", h, heads, memory)
        outputs.append(h)
    return norm(w, "decoder.norm", h), outputs


def transformer(
    w: Weights, spec: GaussianTransformerSpec | GMMTransformerSpec, head: str, code: Array
) -> tuple[Array, Array, Features]:
    """Vectors of the steps (B, H, width), what `head` makes of them (B, H, D), and features."""
    steps, features = [], {}
    for row in code:
        vectors, outputs = decoder(w, spec.depth, spec.heads, row)
        steps.append(vectors)
        for n, output in enumerate(outputs):
            features.setdefault(f"layer{n}", []).append(output)
    out = linear(w, head, np.array(steps))
    return np.array(steps), out, {n: np.array(values) for n, values in features.items()} | {"output": out}


def gaussian_transformer(w: Weights, spec: GaussianTransformerSpec, code: Array) -> tuple[Array, Features]:
    """Means (B, H, Da) and features."""
    _, out, features = transformer(w, spec, "mean", code)
    return np.tanh(out), features


def gmm_transformer(w: Weights, spec: GMMTransformerSpec, code: Array) -> tuple[Array, Array, Features]:
    """Means (B, M, H, Da), logits (B, M) and features. A step's outputs are mode after mode."""
    steps, out, features = transformer(w, spec, "means", code)
    means = np.stack(np.split(np.tanh(out), spec.modes, -1), 1)
    return means, linear(w, "logits", steps.reshape(len(code), -1)), features


# --- UNet -------------------------------------------------------------------------------------------------------------


def frequencies(size: int) -> Array:
    """Of the time embedding."""
    return np.array([10000.0 ** (-j / (size // 2 - 1)) for j in range(size // 2)])


def conv1d(w: Weights, name: str, x: Array, stride: int = 1, pad: int = 0) -> Array:
    """x (C, L), kernel (O, C, k) -> (O, l)."""
    kernel, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    x, k = np.pad(x, ((0, 0), (pad, pad))), kernel.shape[-1]
    starts = range(0, x.shape[1] - k + 1, stride)
    return np.stack([(kernel * x[:, i : i + k]).sum((1, 2)) + bias for i in starts], 1)


def transposed_conv1d(w: Weights, name: str, x: Array) -> Array:
    """x (C, L), kernel (C, O, 4) -> (O, 2 L): each input adds its kernel, two steps on; both ends lose a step."""
    kernel = w[f"{name}.weight"]
    out = np.zeros((kernel.shape[1], 2 * x.shape[1] + 2))
    for i in range(x.shape[1]):
        out[:, 2 * i : 2 * i + 4] += np.einsum("c,cok->ok", x[:, i], kernel)
    return out[:, 1:-1] + w[f"{name}.bias"][:, None]


def conv_block(w: Weights, name: str, spec: UNetSpec, x: Array) -> Array:
    """Convolution, normalisation group after group, Mish."""
    x = conv1d(w, f"{name}.0", x, pad=spec.kernel // 2)
    groups = [(g - g.mean()) / np.sqrt(g.var() + spec.norm_epsilon) for g in np.split(x, spec.groups)]
    return mish(np.concatenate(groups) * w[f"{name}.1.weight"][:, None] + w[f"{name}.1.bias"][:, None])


def conditional_block(w: Weights, name: str, spec: UNetSpec, x: Array, condition: Array) -> Array:
    """Two conv blocks around out = scale * x + shift, and the skip."""
    if spec.condition_hidden:
        film = linear(w, f"{name}.film.1", mish(condition))
    else:
        film = linear(w, f"{name}.film.0", condition)
        film = linear(w, f"{name}.film.4", mish(linear(w, f"{name}.film.2", mish(film))))
    scale, shift = film[: len(film) // 2, None], film[len(film) // 2 :, None]
    out = conv_block(w, f"{name}.second", spec, scale * conv_block(w, f"{name}.first", spec, x) + shift)
    return out + (conv1d(w, f"{name}.skip", x) if f"{name}.skip.weight" in w else x)


def level(w: Weights, name: str, spec: UNetSpec, x: Array, condition: Array) -> Array:
    for part in ("first", "second"):
        x = conditional_block(w, f"{name}.{part}", spec, x, condition)
    return x


def unet(w: Weights, spec: UNetSpec, x: Array, t: Array, state: Array) -> tuple[Array, Features]:
    """Noise (B, H, Da) and features, sample after sample."""
    code, features = state, {}
    if spec.condition_hidden:  # two linear layers with nothing between
        code = linear(w, "encoder.trunk.last", linear(w, "encoder.trunk.first", state))
        features = {"condition": list(code)}
    out = []
    for b in range(len(x)):
        angle = t[b] * frequencies(spec.time_size)
        time = linear(w, "time.layers.0", np.concatenate([np.sin(angle), np.cos(angle)]))
        condition = np.concatenate([linear(w, "time.layers.2", mish(time)), code[b]])
        h, skipped, levels, found = x[b].T, [], len(spec.multipliers), {}
        for n in range(levels):
            if n > 0:
                h = conv1d(w, f"shrink.{n - 1}", h, stride=2, pad=1)
            h = found[f"down{n}"] = level(w, f"down.{n}", spec, h, condition)
            skipped.append(h)
        h = found["middle"] = level(w, "middle", spec, h, condition)
        for n in range(levels - 1):
            h = level(w, f"up.{n}", spec, np.concatenate([h, skipped[levels - 1 - n]]), condition)
            h = found[f"up{n}"] = transposed_conv1d(w, f"grow.{n}", h)
        found["output"] = conv1d(w, "last.1", conv_block(w, "last.0", spec, h))
        out.append(found["output"].T)
        for name, value in found.items():
            features.setdefault(name, []).append(value)
    return np.array(out), {name: np.array(values) for name, values in features.items()}
