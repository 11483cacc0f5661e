"""Files recorded with robosuite 1.5 read as the same file of 1.4.1 would, or are refused with the reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from d2ppo_core.data.robomimic import Demonstrations, Episode, read_demonstrations, write_demonstrations
from d2ppo_core.errors import UserError
from d2ppo_core.tasks import action_spec, load_task, observation_spec

ARM = {  # as robosuite 1.5.2 loads it for a Panda
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed",
    "kp_limits": [0, 300], "damping_ratio_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "input_type": "delta", "input_ref_frame": "base", "interpolation": None,
    "ramp_ratio": 0.2, "gripper": {"type": "GRIP"},
}  # fmt: skip
CONTROLLER = {"type": "BASIC", "body_parts": {"right": ARM, "torso": {"type": "JOINT_POSITION", "kp": 1000}}}
TASKS = ("lift", "can", "square", "transport")


def args_15(task: str, **arm: Any) -> dict[str, Any]:
    """env_args of a 1.5 file, an arm's settings changed."""
    controller, arms = copy.deepcopy(CONTROLLER), action_spec(load_task(task)).arms
    controller["body_parts"]["right"] = ARM | arm
    kwargs = {"robots": ["Panda"] * arms, "control_freq": 20, "lite_physics": True,
              "controller_configs": controller if arms == 1 else [controller] * arms}
    return {"env_name": load_task(task).environment, "env_version": "1.5.2", "type": 1, "env_kwargs": kwargs}


def args_141(task: str) -> dict[str, Any]:
    return {"env_name": load_task(task).environment, "env_version": "1.4.1", "type": 1, "env_kwargs": {}}


def moving(rng: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (T, 3) and rotations (T, 3, 3) of something that moves by up to a centimetre a step."""
    positions = rng.uniform(-0.5, 0.5, 3) + np.cumsum(rng.uniform(-0.005, 0.005, (steps, 3)), axis=0)
    turns = Rotation.from_rotvec(np.cumsum(rng.uniform(-0.05, 0.05, (steps, 3)), axis=0))
    return positions, (turns * Rotation.random(random_state=rng)).as_matrix()


def quaternions(rotations: np.ndarray) -> np.ndarray:
    return Rotation.from_matrix(rotations).as_quat()


def in_hand(hand: tuple[np.ndarray, np.ndarray], thing: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(T, 7) pose of the thing in the hand's frame, quaternion xyzw with w >= 0."""
    position = np.einsum("tji,tj->ti", hand[1], thing[0] - hand[0])
    quaternion = quaternions(np.einsum("tji,tjk->tik", hand[1], thing[1]))
    return np.concatenate([position, quaternion * np.where(quaternion[:, 3:] < 0, -1, 1)], axis=1)


def before(thing: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where it was a frame earlier."""
    return tuple(np.concatenate([part[:1], part[:-1]]) for part in thing)


def objects(task: str, rng: np.random.Generator, hands: list, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The "object" observation (T, n) as 1.4.1 records it, and as 1.5 does."""
    thing = moving(rng, steps)
    pose = np.concatenate([thing[0], quaternions(thing[1])], axis=1)
    if task == "lift":
        away = hands[0][0] - thing[0]
        return np.concatenate([pose, away], axis=1), np.concatenate([pose, -away], axis=1)
    if task == "transport":
        rest, flags = rng.normal(size=(steps, 20)), rng.integers(0, 2, (steps, 2))
        relative = np.concatenate([thing[0] - hands[0][0], rng.normal(size=(steps, 9))], axis=1)
        return (np.concatenate([pose, rest, relative, flags], axis=1),
                np.concatenate([pose, rest, flags, relative], axis=1))
    stale = in_hand(hands[0], before(thing))
    stale[0] = 0.0  # robosuite 1.5's first observation
    return (np.concatenate([pose, in_hand(hands[0], thing)], axis=1), np.concatenate([stale, pose], axis=1))


def episodes(task: str) -> tuple[list[Episode], list[Episode]]:
    """The same demonstrations as 1.4.1 and as 1.5 record them."""
    rng, found, arms = np.random.default_rng(0), ([], []), action_spec(load_task(task)).arms
    for steps in (9, 14):
        hands, obs = [moving(rng, steps) for _ in range(arms)], {}
        for arm, hand in enumerate(hands):
            obs |= {f"robot{arm}_eef_pos": hand[0], f"robot{arm}_eef_quat": quaternions(hand[1]),
                    f"robot{arm}_gripper_qpos": rng.uniform(-0.04, 0.04, (steps, 2))}
        actions = rng.uniform(-1, 1, (steps, 7 * arms))
        for version, seen in zip(found, objects(task, rng, hands, steps), strict=True):
            version.append(Episode({**obs, "object": seen}, actions, np.zeros(steps), np.zeros(steps, dtype=int)))
    return found


def read(path: Path, task: str) -> Demonstrations:
    config = load_task(task)
    return read_demonstrations(path, config.environment, observation_spec(config), action_spec(config))


@pytest.mark.parametrize("task", TASKS)
def test_a_file_of_15_reads_as_the_one_of_141(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = episodes(task)
    write_demonstrations(tmp_path / "v141.hdf5", old, args_141(task), {})
    expected = read(tmp_path / "v141.hdf5", task)
    assert capsys.readouterr().err == ""
    write_demonstrations(tmp_path / "v15.hdf5", new, args_15(task, input_ref_frame="world"), {})
    found = read(tmp_path / "v15.hdf5", task)
    for one, two in zip(found.states + found.actions, expected.states + expected.actions, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
    (said,) = capsys.readouterr().err.splitlines()
    assert "robosuite 1.5.2" in said and "gripper" in said
    assert (found.simulator.name, found.simulator.version) == ("robosuite", "1.5.2")
    assert found.simulator.controller == "OSC_POSE kp 150 damping 1 frame world (robosuite 1.5)"


def test_ways_to_write_the_same_controller(tmp_path: Path) -> None:
    path, (_, new) = tmp_path / "v15.hdf5", episodes("can")
    short, nested, several = args_15("can"), args_15("can"), args_15("can")
    short["env_kwargs"]["controller_configs"]["body_parts"]["right"] = {"type": "OSC_POSE"}  # robosuite's defaults
    nested["env_kwargs"]["controller_configs"]["body_parts"] = {"arms": {"right": ARM}}  # as in its files of robots
    several["env_kwargs"]["controller_configs"] = [several["env_kwargs"]["controller_configs"]]
    for args in (short, nested, several):
        write_demonstrations(path, new, args, {})
        assert len(read(path, "can").states) == 2


REFUSED = {  # task, changed settings of the arm, words of the answer
    "stiffness": ("lift", {"kp": 100}, "kp 100 instead of 150"),
    "absolute": ("lift", {"input_type": "absolute"}, "input_type absolute instead of delta"),
    "range": ("lift", {"output_max": [0.1] * 6}, "output_max [0.1"),
    "commanded": ("lift", {"goal_update_mode": "desired"}, "goal_update_mode desired instead of achieved"),
    "gripper": ("lift", {"gripper": {"type": "OTHER"}}, "gripper {'type': 'OTHER'}"),
    "kind": ("can", {"type": "JOINT_POSITION"}, "type JOINT_POSITION instead of OSC_POSE"),
    "frame": ("can", {"input_ref_frame": "hand"}, "frame 'hand'"),
    "turned bases": ("transport", {"input_ref_frame": "base"}, "frames of two bases, which are turned"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_controllers_are_refused(name: str, tmp_path: Path) -> None:
    task, changes, words = REFUSED[name]
    write_demonstrations(tmp_path / "v15.hdf5", episodes(task)[1], args_15(task, **changes), {})
    with pytest.raises(UserError) as refused:
        read(tmp_path / "v15.hdf5", task)
    assert words in str(refused.value) and "with robosuite 1.5.2 under another contract" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("change", [
    {"robots": ["PandaOmron"]}, {"controller_configs": ARM}, {"controller_configs": None}, {"control_freq": 10},
    {"controller_configs": {"type": "WHOLE_BODY_IK", "body_parts": {"right": ARM}}},
])  # fmt: skip
def test_other_environments_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    args = args_15("lift")
    args["env_kwargs"] |= change
    write_demonstrations(tmp_path / "v15.hdf5", episodes("lift")[1], args, {})
    with pytest.raises(UserError, match="instead of"):
        read(tmp_path / "v15.hdf5", "lift")


@pytest.mark.parametrize("task", TASKS)
def test_entries_in_another_order_are_refused(task: str, tmp_path: Path) -> None:
    write_demonstrations(tmp_path / "v15.hdf5", episodes(task)[0], args_15(task, input_ref_frame="world"), {})
    with pytest.raises(UserError, match=r"demo_0/obs/object does not have robosuite 1\.5's order"):
        read(tmp_path / "v15.hdf5", task)
