"""`d2ppo inspect FILE`: what is in a checkpoint, a dataset or a run folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .checkpoint import read_policy
from .cli import Parser
from .errors import UserError
from .files import sha256, write_json


def main(arguments: list[str]) -> int:
    """Print a description; `--json` as JSON."""
    parser = Parser(
        prog="d2ppo inspect",
        description="Describe a policy (.safetensors), demonstrations (.hdf5) or a run folder.",
        epilog="example: d2ppo inspect runs/lift/policy.safetensors",
    )
    parser.add_argument("file", type=Path, help="the file or folder to describe")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--run-dir", type=Path, help="also write inspect.json into this folder")
    options = parser.parse_args(arguments)
    description = describe(options.file)
    if options.run_dir:
        write_json(options.run_dir / "inspect.json", description)
    print(json.dumps(description, indent=2) if options.json else "\n".join(_lines(description)))
    return 0


def describe(path: Path) -> dict[str, Any]:
    """What the file is, decided by its kind and checked by reading it."""
    if path.is_dir():
        return describe_run(path)
    if path.suffix in (".hdf5", ".h5"):
        return describe_dataset(path)
    return describe_policy(path)


def describe_policy(path: Path) -> dict[str, Any]:
    """The contract, and the size of each set of weights."""
    spec, parts = read_policy(path)
    sizes = {name: sum(t.numel() for t in tensors.values()) for name, tensors in parts.items()}
    return {
        "file": str(path),
        "kind": "policy",
        "sha256": sha256(path),
        "numbers": sizes,
        "contract": spec.model_dump(mode="json"),
    }


def describe_dataset(path: Path) -> dict[str, Any]:
    """Episodes, lengths, keys with their ranges, modes, and the environment that recorded it."""
    digest = sha256(path)
    try:
        with h5py.File(path, "r") as file:
            data = file["data"]
            demos = [data[name] for name in data]
            lengths = [len(d["actions"]) for d in demos]
            keys = {key: _range(np.asarray(d["obs"][key]) for d in demos) for key in demos[0]["obs"]} if demos else {}
            modes = Counter(str(d.attrs["mode"]) for d in demos if "mode" in d.attrs)
            args = json.loads(data.attrs["env_args"])
            actions = _range(np.asarray(d["actions"]) for d in demos) if demos else {}
            extra = {k: _plain(v) for k, v in data.attrs.items() if k not in ("env_args", "total")}
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable robomimic HDF5 file ({error}); copy or record it again") from error
    return {
        "file": str(path),
        "kind": "demonstrations",
        "sha256": digest,
        "episodes": len(lengths),
        "control_steps": sum(lengths),
        "length": {"mean": float(np.mean(lengths)), "min": min(lengths), "max": max(lengths)} if lengths else {},
        "environment": args,
        "actions": actions,
        "observations": keys,
        "modes": dict(modes),
        "attributes": extra,
    }


def _range(values: Iterable[np.ndarray]) -> dict[str, Any]:
    """Shape of one time step, type and range over all episodes, one episode in memory at a time."""
    found: dict[str, Any] = {}
    for value in values:
        finite = value[np.isfinite(value)] if value.dtype.kind == "f" else value
        low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
        found = {
            "shape": list(value.shape[1:]),
            "dtype": str(value.dtype),
            "min": min(low, found.get("min", low)),
            "max": max(high, found.get("max", high)),
            "not_finite": int(value.size - finite.size) + found.get("not_finite", 0),
        }
    return found


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def describe_run(path: Path) -> dict[str, Any]:
    """Whether the run finished, and its summary."""
    if not (path / "config.yaml").exists():
        if record := next((file for depth in ("", "*/", "*/*/") for file in path.glob(f"{depth}*.mcap")), None):
            trials = path if record.parent == path else record.parent.parent
            raise UserError(f"{path} holds recorded trials; `d2ppo trials show {trials}` says what is in them")
        raise UserError(f"{path} is not a run folder (it has no config.yaml); give a file or a run_dir of d2ppo")
    summary = path / "summary.json"
    files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    return {
        "file": str(path),
        "kind": "run",
        "finished": summary.exists(),
        "files": files,
        "summary": json.loads(summary.read_text()) if summary.exists() else {},
    }


def _lines(value: Any, indent: str = "") -> list[str]:
    """Nested dictionaries as indented text."""
    lines = []
    for name, item in value.items():
        if isinstance(item, dict):
            lines += [f"{indent}{name}:", *_lines(item, indent + "  ")]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            lines += [f"{indent}{name}:"] + [
                f"{indent}  - " + ", ".join(f"{k} {v}" for k, v in entry.items() if v != "") for entry in item
            ]
        else:
            lines.append(f"{indent}{name}: {item}")
    return lines
