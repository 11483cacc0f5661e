"""Which named features "early", "mid" and "late" mean (`dispersive.py`); said once for all networks."""

from __future__ import annotations

from .blocks import Trunk

QUARTERS = {"early": 1, "mid": 2, "late": 3}


def by_quarters(count: int) -> dict[str, int]:
    """Index of the last of `count` things in the first quarter, half and three quarters."""
    return {name: max(0, -(-count * q // 4) - 1) for name, q in QUARTERS.items()}


def chosen(taps: dict[str, str], layer: str) -> tuple[str, ...]:
    """The tap of one layer, or each once for "all"; KeyError where there is no such layer."""
    return tuple(dict.fromkeys(taps.values())) if layer == "all" else (taps[layer],)


def trunk_tap(trunk: Trunk, layer: str, identity: str) -> tuple[str, ...]:
    """Taps of an MLP. `identity`: the feature that the release's shared Identity saw first (`_released`)."""
    if layer.startswith("released_"):
        return (_released(trunk, layer.removeprefix("released_"), identity),)
    return chosen(_trunk_taps(trunk), layer)


def _trunk_taps(trunk: Trunk) -> dict[str, str]:
    """One residual block: input layer, inside the block, its output; deeper: by quarters."""
    n = len(trunk.blocks)
    if not trunk.residual:
        return {name: f"hidden{(n + 1) * q // 4}" for name, q in QUARTERS.items()}
    if n == 0:
        return dict.fromkeys(QUARTERS, "input")
    if n == 1:
        return {"early": "input", "mid": "block0.inside", "late": "block0"}
    return {name: f"block{index}" for name, index in by_quarters(n).items()}


def _released(trunk: Trunk, layer: str, identity: str) -> str:
    """What the D2PPO release hooked: entry len//4, len//2 or 3 len//4 of its module list.

    The list ends with the output layer and, for the residual net, an Identity after it (the same tensor): "mid" and
    "late" of a 3-layer net are the predicted noise. Its Identity is one shared object; where an MLP encodes the state,
    that encoder's comes first and is what "late" of a 3-layer net really hooked.
    """
    n = len(trunk.blocks)
    if trunk.residual:
        listed = ["input", *(f"block{b}" for b in range(n)), "output", identity]
    else:
        listed = [*(f"hidden{h}" for h in range(n + 1)), "output"]
    return listed[{"early": len(listed) // 4, "mid": len(listed) // 2, "late": 3 * len(listed) // 4}[layer]]
