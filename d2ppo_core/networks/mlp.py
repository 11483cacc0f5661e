"""DiffusionMLP: predicts the noise in an action chunk from the chunk, the denoising step and the state."""

from __future__ import annotations

import torch
from torch import Tensor

from ..network_specs import MLPSpec
from .blocks import TimeEmbedding, Trunk
from .encoder import Network, StateEncoder


class DiffusionMLP(Network):
    """eps_theta(x_t, t, s) of DPPO's state policies (parameter counts: tests/core/test_networks.py)."""

    def __init__(self, spec: MLPSpec, chunk_shape: tuple[int, int], state_size: int) -> None:
        """`chunk_shape` is (H, Da); `state_size` is To * Do."""
        super().__init__()
        self.chunk_shape = chunk_shape
        numbers = chunk_shape[0] * chunk_shape[1]
        self.encoder = StateEncoder(state_size, spec.condition_hidden, spec.activation)
        self.time = TimeEmbedding(spec.time_size)
        size_in = numbers + spec.time_size + self.encoder.size
        self.trunk = Trunk(size_in, spec.hidden, numbers, spec.activation, spec.layer_norm, spec.residual)
        self.blocks = len(self.trunk.blocks)

    def forward(self, x: Tensor, t: Tensor, code: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, H, Da), t (B,) long, code (B, C) -> predicted noise (B, H, Da), features by name, each (B, D)."""
        flat = x.flatten(1)  # [B, H, Da] -> [B, H*Da]
        out, features = self.trunk(torch.cat([flat, self.time(t), code], dim=-1))
        return out.view(-1, *self.chunk_shape), self.with_code(code, features)  # [B, H*Da] -> [B, H, Da]

    def tap(self, layer: str) -> tuple[str, ...]:
        """Names of the features that `dispersive.layer` means for this network (see `dispersive.py`)."""
        if layer.startswith("released_"):
            return (self._released_tap(layer.removeprefix("released_")),)
        taps = self._taps()
        return tuple(dict.fromkeys(taps.values())) if layer == "all" else (taps[layer],)

    def _taps(self) -> dict[str, str]:
        """Early, mid, late. One residual block: input layer, inside the block, its output; deeper: by quarters."""
        n = self.blocks
        if not self.trunk.residual:
            return {name: f"hidden{(n + 1) * q // 4}" for name, q in (("early", 1), ("mid", 2), ("late", 3))}
        if n == 0:
            return dict.fromkeys(("early", "mid", "late"), "input")
        if n == 1:
            return {"early": "input", "mid": "block0.inside", "late": "block0"}
        return {name: f"block{max(0, -(-n * q // 4) - 1)}" for name, q in (("early", 1), ("mid", 2), ("late", 3))}

    def _released_tap(self, layer: str) -> str:
        """What the D2PPO release hooked: entry len//4, len//2 or 3 len//4 of its module list.

        The list ends with the output layer and, for the residual net, an Identity after it (the same tensor): "mid"
        and "late" of a 3-layer net are the predicted noise. Its Identity is one shared object; where a state encoder
        exists, the encoder's comes first and is what "late" of a 3-layer net really hooked.
        """
        if self.trunk.residual:
            listed = ["input", *(f"block{n}" for n in range(self.blocks)), "output", "identity"]
        else:
            listed = [*(f"hidden{n}" for n in range(self.blocks + 1)), "output"]
        name = listed[{"early": len(listed) // 4, "mid": len(listed) // 2, "late": 3 * len(listed) // 4}[layer]]
        if name == "identity":
            return "output" if self.encoder.trunk is None else "condition"
        return name
