"""Recorded trials -> a dataset in LeRobot's format v3.0, as far as it is documented: parquet files and their index.

meta/info.json                             features, counts, rate, where files are
meta/stats.json                            of each feature over all frames; pictures in [0, 1], (3, 1, 1)
meta/tasks.parquet                         task text -> task_index
meta/episodes/chunk-000/file-000.parquet   of each episode: length, task, where its frames are, its statistics
data/chunk-CCC/file-FFF.parquet            one file an episode; pictures as PNG inside
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2ppo_core.contract import PolicySpec
from d2ppo_core.data.robomimic import Episode
from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import write_json
from d2ppo_core.observation import dimension_names, state_vector
from d2ppo_core.picture import upright

from .export import Exported, common_contract, read_episodes
from .observations import MAX_AGE
from .reader import Trial

VERSION = "v3.0"
FILES = 1000  # in a chunk's folder
COUNTERS = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")}
Stats = dict[str, np.ndarray]


def export_lerobot(
    trials: Sequence[Trial], folder: Path, contract: PolicySpec | None = None, failures: bool = False,
    max_age: int = MAX_AGE,
) -> Exported:  # fmt: skip
    """Write the successful trials (with `failures` all) as one dataset. The folder appears whole or not at all."""
    _pyarrow()
    if folder.exists():
        raise UserError(f"{folder} exists; choose another --out, or remove it")
    spec, report = common_contract(trials, contract), Exported()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with explain_os_errors("writing", folder):
        try:
            rows = _write_data(partial, read_episodes(trials, spec, report, failures, max_age), spec)
            if not rows:
                why = "; ".join(f"{name}: {reason}" for name, reason in report.left_out.items())
                raise UserError(f"no trial is left to export ({why}); give successful ones, or --all")
            _write_meta(partial, rows, spec)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return report


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("LeRobot's format needs pyarrow; run `pip install pyarrow`") from error
    return pyarrow


def features(spec: PolicySpec) -> dict[str, dict[str, Any]]:
    """What each column is."""
    axes = ("dx", "dy", "dz", "rx", "ry", "rz", "gripper") if spec.action.meaning == "osc_pose_delta" else ("dx", "dy")
    arms = [f"arm{arm}." for arm in range(spec.action.arms)] if spec.action.arms > 1 else [""]
    names = dimension_names(spec.observation)
    found: dict[str, dict[str, Any]] = {
        "observation.state": {"dtype": "float32", "shape": [len(names)], "names": names},
        "action": {
            "dtype": "float32", "shape": [spec.action.size], "names": [arm + axis for arm in arms for axis in axes]
        },
    }  # fmt: skip
    for camera in spec.observation.cameras:
        found[f"observation.images.{camera.name}"] = {
            "dtype": "image", "shape": [camera.height, camera.width, 3], "names": ["height", "width", "channels"]
        }  # fmt: skip
    scalars = {"next.reward": "float32", "next.done": "bool", **COUNTERS}
    return found | {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in scalars.items()}


def _columns(episode: Episode, spec: PolicySpec, number: int, first: int) -> dict[str, np.ndarray]:
    """One episode's frames, by feature: (T, ...)."""
    length = len(episode.actions)
    counted = np.arange(length)
    columns = {
        "observation.state": state_vector(spec.observation, episode.obs),
        "action": episode.actions.astype(np.float32),
        "next.reward": episode.rewards.astype(np.float32),
        "next.done": episode.dones.astype(bool),
        "timestamp": (counted / spec.action.control_hz).astype(np.float32),
        "frame_index": counted, "episode_index": np.full(length, number), "index": first + counted,
        "task_index": np.zeros(length, dtype=np.int64),
    }  # fmt: skip
    for camera in spec.observation.cameras:
        pictures = [upright(picture, camera) for picture in episode.obs[camera.key]]
        columns[f"observation.images.{camera.name}"] = np.stack(pictures)  # (T, H, W, 3)
    return columns


def _write_data(folder: Path, episodes: Any, spec: PolicySpec) -> list[dict[str, Any]]:
    """The frames; returns one row of the episodes' index for each, its statistics under "stats"."""
    pa, first, rows = _pyarrow(), 0, []
    for number, episode in enumerate(episodes):
        columns = _columns(episode, spec, number, first)
        chunk, file, length = number // FILES, number % FILES, len(episode.actions)
        path = folder / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({name: _arrow(value) for name, value in columns.items()})
        pa.parquet.write_table(table, path, compression="snappy")
        rows.append({
            "episode_index": number, "tasks": [spec.task], "length": length,
            "data/chunk_index": chunk, "data/file_index": file,
            "dataset_from_index": first, "dataset_to_index": first + length,
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            "stats": {name: statistics(value) for name, value in columns.items()},
        })  # fmt: skip
        first += length
    return rows


def _arrow(values: np.ndarray) -> Any:
    """A column: numbers, lists of a fixed length, or pictures as PNG."""
    pa = _pyarrow()
    if values.ndim == 4:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.array([{"bytes": _png(p), "path": f"frame-{n:06d}.png"} for n, p in enumerate(values)], kind)
    flat = pa.array(values.ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])  # [T * n] -> [T, n]


def _png(picture: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    memory = io.BytesIO()
    imsave(memory, picture, format="png")
    return memory.getvalue()


def statistics(values: np.ndarray) -> Stats:
    """Of a column (T,), (T, n) or (T, H, W, 3): min, max, mean, std as (1,), (n,) or (3, 1, 1), and the count (1,)."""
    if values.ndim == 4:
        flat, shape = values.reshape(-1, 3) / 255.0, (3, 1, 1)  # [T, H, W, 3] -> [T * H * W, 3]
    else:
        flat = values.reshape(len(values), -1).astype(np.float64)  # [T] or [T, n] -> [T, n]
        shape = (flat.shape[1],)
    found = {name: getattr(flat, name)(axis=0).reshape(shape) for name in ("min", "max", "mean", "std")}
    return found | {"count": np.array([len(values)])}


def together(parts: Sequence[Stats]) -> Stats:
    """Statistics of several episodes as those of all their frames."""
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)
    means, deviations = np.stack([p["mean"] for p in parts]), np.stack([p["std"] for p in parts])
    share = (counts / counts.sum()).reshape(-1, *[1] * (means.ndim - 1))
    mean = (share * means).sum(0)
    return {
        "min": np.min([p["min"] for p in parts], axis=0),
        "max": np.max([p["max"] for p in parts], axis=0),
        "mean": mean,
        "std": np.sqrt((share * (deviations**2 + (means - mean) ** 2)).sum(0)),
        "count": np.array([int(counts.sum())]),
    }


def _write_meta(folder: Path, rows: list[dict[str, Any]], spec: PolicySpec) -> None:
    pa, described = _pyarrow(), features(spec)
    stats = {name: together([row["stats"][name] for row in rows]) for name in described}
    write_json(folder / "meta/stats.json", {name: {k: v.tolist() for k, v in s.items()} for name, s in stats.items()})
    write_json(folder / "meta/info.json", _info(rows, spec, described))
    # The text is the index of a pandas table: that is how LeRobot looks tasks up.
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": [
        {**described, "metadata": None} for described in (column, index)
    ], "pandas_version": "2.0.0"}  # fmt: skip
    tasks = pa.table({"task_index": [0], "task": [spec.task]}).replace_schema_metadata({"pandas": json.dumps(pandas)})
    pa.parquet.write_table(tasks, folder / "meta/tasks.parquet")
    flat = [
        {k: v for k, v in row.items() if k != "stats"}
        | {f"stats/{name}/{k}": v.tolist() for name, part in row["stats"].items() for k, v in part.items()}
        for row in rows
    ]
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pa.parquet.write_table(pa.Table.from_pylist(flat), path)


def _info(rows: list[dict[str, Any]], spec: PolicySpec, described: dict[str, Any]) -> dict[str, Any]:
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": len(rows),
        "total_frames": sum(row["length"] for row in rows),
        "total_tasks": 1,
        "chunks_size": FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": spec.action.control_hz,
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": described,
    }
