"""Files of robomimic are read, and robomimic reads ours."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from d2ppo_core.data.robomimic import Episode, read_demonstrations, write_demonstrations
from d2ppo_core.tasks import action_spec, load_task, observation_spec

KEYS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
ENV_KWARGS = {  # as the v1.4.1 files carry it
    "has_renderer": False, "has_offscreen_renderer": False, "ignore_done": True, "use_object_obs": True,
    "use_camera_obs": False, "control_freq": 20, "robots": ["Panda"], "camera_depths": False, "camera_heights": 84,
    "controller_configs": {
        "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "kp": 150, "damping": 1, "impedance_mode": "fixed",
        "kp_limits": [0, 300], "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
        "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
    },
}  # fmt: skip
ENV_ARGS = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": ENV_KWARGS}


def lift_episodes(lengths: list[int]) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            obs={key: rng.normal(size=(n, size)) for key, size in KEYS.items()},
            actions=rng.uniform(-1, 1, (n, 7)),
            rewards=np.zeros(n),
            dones=np.zeros(n, dtype=int),
            states=rng.normal(size=(n, 32)),
            next_obs={key: rng.normal(size=(n, size)) for key, size in KEYS.items()},
            model_file="<mujoco/>",
            attrs={"mode": "nearest"},
        )
        for n in lengths
    ]


def read_lift(path: Path, **options: int):
    task = load_task("lift")
    return read_demonstrations(path, "Lift", observation_spec(task), action_spec(task), **options)


def test_round_trip(tmp_path: Path) -> None:
    episodes = lift_episodes([7, 12, 9])
    write_demonstrations(tmp_path / "lift.hdf5", episodes, ENV_ARGS, {"note": "x"})
    read = read_lift(tmp_path / "lift.hdf5")
    assert len(read.digest) == 64
    assert (read.simulator.environment, read.simulator.version) == ("Lift", "1.4.1")
    assert read.simulator.controller == "OSC_POSE kp 150 damping 1"
    for episode, states, actions in zip(episodes, read.states, read.actions, strict=True):
        np.testing.assert_array_equal(states, np.concatenate([episode.obs[k] for k in KEYS], axis=1).astype(np.float32))
        np.testing.assert_array_equal(actions, episode.actions.astype(np.float32))
        assert states.dtype == actions.dtype == np.float32


def test_a_file_as_robomimic_writes_it(tmp_path: Path) -> None:
    """Eleven demos (so that demo_10 sorts before demo_2 by name), more keys than needed, compression, no next_obs."""
    rng, path = np.random.default_rng(1), tmp_path / "low_dim_v141.hdf5"
    actions = [rng.uniform(-1, 1, (5 + n, 7)) for n in range(11)]
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"], data.attrs["env_args"] = sum(map(len, actions)), json.dumps(ENV_ARGS, indent=4)
        for n, a in enumerate(actions):
            demo = data.create_group(f"demo_{n}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = len(a), "<mujoco/>"
            demo.create_dataset("actions", data=a, compression="gzip")
            demo.create_dataset("states", data=rng.normal(size=(len(a), 32)))
            for key, size in {**KEYS, "robot0_joint_pos": 7, "robot0_eef_vel_lin": 3}.items():
                demo.create_dataset(f"obs/{key}", data=rng.normal(size=(len(a), size)))
        file.create_dataset("mask/train", data=np.array([b"demo_0"]))
    read = read_lift(path)
    assert [len(a) for a in read.actions] == [len(a) for a in actions]
    assert [s.shape[1] for s in read.states] == [19] * 11
    assert [len(a) for a in read_lift(path, max_episodes=3).actions] == [5, 6, 7]


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    def episodes():
        yield from lift_episodes([5, 6])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demonstrations(tmp_path / "lift.hdf5", episodes(), ENV_ARGS, {})
    assert list(tmp_path.iterdir()) == []


def test_robomimic_reads_our_file(tmp_path: Path) -> None:
    """Its own metadata and sequence readers; skipped where robomimic cannot be imported."""
    pytest.importorskip("robomimic", reason="robomimic is not installed", exc_type=ImportError)
    file_utils = pytest.importorskip("robomimic.utils.file_utils", exc_type=ImportError)
    obs_utils = pytest.importorskip("robomimic.utils.obs_utils", exc_type=ImportError)
    dataset = pytest.importorskip("robomimic.utils.dataset", exc_type=ImportError)
    episodes, path = lift_episodes([7, 12, 9, 8]), str(tmp_path / "lift.hdf5")
    write_demonstrations(path, episodes, ENV_ARGS, {})
    assert file_utils.get_env_metadata_from_dataset(path)["env_name"] == "Lift"
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(KEYS), "rgb": []}})
    sequences = dataset.SequenceDataset(
        hdf5_path=path, obs_keys=list(KEYS), action_keys=["actions"], dataset_keys=["actions", "rewards", "dones"],
        action_config={"actions": {"normalization": None}}, load_next_obs=True, frame_stack=1, seq_length=4,
        pad_frame_stack=True, pad_seq_length=True, get_pad_mask=False, goal_mode=None, hdf5_cache_mode="all",
        hdf5_use_swmr=True, hdf5_normalize_obs=False, filter_by_attribute="train",
    )  # fmt: skip
    assert len(sequences) == 7 + 12 + 9, "the last demonstration is held out"
    np.testing.assert_allclose(sequences[2]["actions"], episodes[0].actions[2:6], atol=1e-6)
    np.testing.assert_allclose(sequences[2]["obs"]["object"], episodes[0].obs["object"][2:6], atol=1e-6)
