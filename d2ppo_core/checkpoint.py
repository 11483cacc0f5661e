"""Two files: `policy.safetensors`, a policy that explains itself, and `resume.pt`, what a killed run needs to go on.

policy.safetensors holds float32 tensors `raw.*`, `ema.*` (pre-training), `base.*` (fine-tuned policies that leave the
first denoising steps to the frozen pre-trained network), `normalizer.*`, and the PolicySpec as JSON in its metadata.
Neither file can run code when it is opened.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .contract import PolicySpec, parse_spec
from .errors import UserError, explain_os_errors
from .files import atomic_path

SPEC_KEY = "d2ppo_spec"
Tensors = dict[str, Tensor]


def save_policy(path: str | Path, spec: PolicySpec, parts: dict[str, nn.Module | None]) -> None:
    """Write a policy atomically. `parts`: 'raw', 'ema', 'base', 'normalizer' -> module (None ones are left out)."""
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, module in parts.items()
        if module is not None
        for name, tensor in module.state_dict().items()
    }
    with atomic_path(path) as partial:
        partial.write_bytes(save(tensors, metadata={SPEC_KEY: spec.model_dump_json()}))


def read_policy(path: str | Path) -> tuple[PolicySpec, dict[str, Tensors]]:
    """Contract and tensors by part. A UserError explains any file that is not a whole policy."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder, not a policy; give {Path(path) / 'policy.safetensors'}")
    with explain_os_errors("reading", path), open(path, "rb"):
        pass
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a policy checkpoint (safetensors says: {error}); give a policy.safetensors of "
            "`d2ppo pretrain` or `finetune`"
        ) from error
    if SPEC_KEY not in metadata:
        raise UserError(
            f"{path} has no policy contract inside; give a policy.safetensors of `d2ppo pretrain` or `finetune`"
        )
    parts: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parse_spec(metadata[SPEC_KEY], str(path)), parts


def load_part(module: nn.Module, parts: dict[str, Tensors], part: str, path: str | Path) -> None:
    """Fill `module` from one part; names every tensor that is missing, foreign, misshapen or not finite."""
    have, want = parts.get(part, {}), module.state_dict()
    wrong = [f"{part}.{name} is missing" for name in want if name not in have]
    wrong += [f"{part}.{name} is unknown" for name in have if name not in want]
    wrong += [
        f"{part}.{name} has shape {tuple(have[name].shape)} instead of {tuple(want[name].shape)}"
        for name in want
        if name in have and have[name].shape != want[name].shape
    ]
    wrong += [f"{part}.{name} holds NaN or infinity" for name in have if not torch.isfinite(have[name]).all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{path} does not fit its own contract: {'; '.join(wrong[:3])}{more}; it is damaged, use another checkpoint"
        )
    module.load_state_dict(have)


def save_resume(path: str | Path, state: dict[str, Any]) -> None:
    """Write a resume file atomically: tensors, numbers, strings, and dicts or lists of them."""
    with atomic_path(path) as partial:
        torch.save(_compact(state), partial)


def _compact(state: Any) -> Any:
    """Tensors that are a part of a larger one, copied: torch would save the whole of it."""
    if isinstance(state, dict):
        return {name: _compact(value) for name, value in state.items()}
    if isinstance(state, list):
        return [_compact(value) for value in state]
    if isinstance(state, Tensor) and state.untyped_storage().nbytes() > state.nbytes:
        return state.clone()
    return state


def load_resume(path: str | Path) -> dict[str, Any]:
    """Open a resume file without running anything that may be in it."""
    with explain_os_errors("reading", path), open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
            raise UserError(
                f"{path} is cut off, damaged, or no resume file of this program; put an older copy in its place and "
                "resume from that, or start again with overwrite=true"
            ) from error
