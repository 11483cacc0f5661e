"""Raw observation -> model tensors. THE one pipeline: dataset, simulator and robot all go through it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .contract import ObservationSpec
from .envs import RawObservation
from .errors import UserError


def state_vector(spec: ObservationSpec, raw: RawObservation) -> np.ndarray:
    """Concatenate the low-dimensional keys in the contract's order.

    Args:
        raw: for each key (..., size), any float type, SI units.

    Returns:
        float32 (..., Do): the only place where observations lose precision.

    Raises:
        UserError: a key is missing, has another size, or is not finite.
    """
    columns = []
    for key in spec.lowdim:
        if key.name not in raw:
            raise UserError(f"the observation lacks '{key.name}'; it has {', '.join(sorted(raw))}")
        value = np.asarray(raw[key.name])
        if value.shape[-1:] != (key.size,):
            raise UserError(f"observation '{key.name}' has shape {value.shape}, the policy expects (..., {key.size})")
        columns.append(value)
    state = np.concatenate(columns, axis=-1, dtype=np.float32)
    if not np.isfinite(state).all():
        bad = [key.name for key, column in zip(spec.lowdim, columns, strict=True) if not np.isfinite(column).all()]
        raise UserError(
            f"observation {', '.join(bad)} holds NaN or infinity; check the sensor or simulator it comes from"
        )
    return state


def model_state(spec: ObservationSpec, raw: RawObservation, device: torch.device | str = "cpu") -> Tensor:
    """Raw observation of n environments, keys (n, To, size) oldest first -> model input (n, To, Do) float32."""
    state = state_vector(spec, raw)  # [n, To, Do]
    if state.shape[1] != spec.history:
        raise UserError(f"the observation holds {state.shape[1]} time steps, the policy looks at {spec.history}")
    return torch.from_numpy(state).to(device)


def dimension_names(spec: ObservationSpec) -> list[str]:
    """One label for each number of the state vector, e.g. 'object[3]'."""
    return [f"{key.name}[{i}]" for key in spec.lowdim for i in range(key.size)]
