"""Images in the native simulator: the robosuite simulator's, pixel by pixel, for any number of threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

from d2ppo_core.contract import Camera
from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.errors import UserError
from d2ppo_core.tasks import load_task, observation_spec
from d2ppo_sim import demos, painter
from d2ppo_sim.native.starts import draw_variant
from d2ppo_sim.robosuite_env import RobosuiteEnv
from native_support import adopt, native, seed_of

pytestmark = pytest.mark.sim
IMAGE_TASKS = ("lift_image", "can_image", "square_image", "transport_image")
WRIST = Camera(name="robot0_eye_in_hand", height=96, width=96, field_of_view=75.0)
FRONT = Camera(name="agentview", height=48, width=64, field_of_view=45.0)


def assert_near(env, theirs: np.ndarray) -> None:
    """Where cameras, lights and geoms stand; not those of unused objects, which fall somewhere out of sight."""
    sizes = [getattr(env.data[0], name).size for name in painter.SEEN]
    parts = zip(painter.SEEN, *(np.split(v, np.cumsum(sizes)[:-1]) for v in (env.views[0, 0], theirs)), strict=True)
    near = np.linalg.norm(theirs[: sizes[0]].reshape(-1, 3), axis=1) < 5
    for name, own, other in parts:
        if not name.startswith("site"):  # those that show belong to unused objects
            width = 9 if name.endswith("mat") else 3
            rows = near if name.startswith("geom") else slice(None)
            pair = own.reshape(-1, width)[rows], other.reshape(-1, width)[rows]
            np.testing.assert_allclose(*pair, rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_images_equal_the_robosuite_simulators(name):
    """The same view gives the same pixels; and both have the same view, to 1e-8."""
    task = load_task(name)
    assert task.simulator == "native"
    cameras = observation_spec(task).cameras
    reference, env = RobosuiteEnv(task.environment, cameras), native(task.environment, cameras=cameras)
    assert env.observation == reference.observation
    reference.reset(1)
    for _ in range(3):
        reference.step(np.zeros(env.action.size))
    adopt(env, 0, reference)
    for action in np.random.default_rng(0).uniform(-1, 1, (2, env.action.size)):
        reference.step(action)
        seen = env.step([0], action[None, None]).observation
        assert all(np.array_equal(seen[key], image) for key, image in env._images(np.array([0])).items())
        theirs = np.concatenate([np.ravel(part) for part in reference.view()])
        assert_near(env, theirs)
        env.views[0, 0] = theirs
        ours = env._images(np.array([0]))
        for key, image in reference.images(reference.view()).items():
            assert ours[key].shape == (1, 1, *image.shape) and ours[key].dtype == np.uint8
            np.testing.assert_array_equal(ours[key][0, 0], image)
    env.close()
    reference.close()


def rollout(workers: int, history: int = 1) -> list[dict]:
    """Observations of 3 environments: at the start and after each of two chunks of 3 steps."""
    threads = threading.active_count()
    env = native("Lift", 3, history, 20, workers=workers, cameras=(WRIST, FRONT))
    chunks = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 7))
    seen = [env.reset([0, 1, 2], [5, 6, 7])] + [env.step([0, 1, 2], chunk).observation for chunk in chunks]
    assert threading.active_count() == threads + workers
    env.close()
    assert threading.active_count() == threads
    return seen


def test_images_depend_neither_on_threads_nor_on_the_batch():
    one, two = rollout(1), rollout(2)
    alone = native("Lift", 1, cameras=(WRIST, FRONT)).reset([0], [6])
    for left, right in zip(one, two, strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])
    for name, value in alone.items():
        np.testing.assert_array_equal(value[0], one[0][name][1])
    assert not np.array_equal(one[0][FRONT.key][0], one[0][FRONT.key][1])
    assert not np.array_equal(one[0][WRIST.key], one[1][WRIST.key])


def test_history_of_images_is_of_the_last_control_steps():
    whole = rollout(1, history=2)
    np.testing.assert_array_equal(whole[0][WRIST.key][:, 0], whole[0][WRIST.key][:, 1])
    env = native("Lift", 1, cameras=(WRIST,))
    env.reset([0], [5])
    chunk = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 7))[0, 0]
    single = [env.step([0], chunk[None, t : t + 1]).observation[WRIST.key][0, 0] for t in range(3)]
    np.testing.assert_array_equal(whole[1][WRIST.key][0], np.stack(single[1:]))
    env.close()


def test_one_picture_a_chunk(monkeypatch):
    painted, render = [], painter.Painter.render
    monkeypatch.setattr(painter.Painter, "render", lambda *a: painted.append(1) or render(*a))
    env = native("Lift", 1, 3, cameras=(WRIST,))
    env.reset([0], [5])
    assert len(painted) == 1, "the first view fills the history, and is painted once"
    env.close()
    env = native("Lift", 1, cameras=(WRIST,))
    env.reset([0], [5])
    env.step([0], np.zeros((1, 8, 7)))
    assert len(painted) == 3
    env.close()


def test_the_cubes_own_size_is_seen():
    """The same pose in two geometries: other pixels; and the compiled model is as it was."""
    env = native("Lift", 1, cameras=(FRONT,))
    before = env.model.geom_size.copy()
    start = env.reset([0], [seed_of(env)]) and env.data[0].qpos[None].copy()
    small, large = (env.start([0], start, [variant])[FRONT.key] for variant in (1, 8))
    np.testing.assert_array_equal(env.start([0], start, [1])[FRONT.key], small)
    assert not np.array_equal(small, large)
    np.testing.assert_array_equal(env.model.geom_size, before)
    env.close()


def test_a_diverging_environment_keeps_its_last_picture():
    env = native("Lift", 1, cameras=(FRONT,))
    before = env.reset([0], [5])
    env.data[0].qvel[2] = np.nan
    step = env.step([0], np.zeros((1, 2, 7)))
    assert step.truncated[0]
    np.testing.assert_array_equal(step.observation[FRONT.key], before[FRONT.key])
    env.close()


@pytest.mark.parametrize(("camera", "expected"), [
    (WRIST.model_copy(update={"field_of_view": 60.0}), "of 75 degrees, the contract says 60"),
    (WRIST.model_copy(update={"name": "nose"}), "no camera 'nose'; the model has frontview"),
    (WRIST.model_copy(update={"multisampling": 1024}), "OpenGL offers at most"),
])
def test_what_cannot_be_shown_is_refused(camera, expected):
    with pytest.raises(UserError, match=expected):
        make_env("native", EnvRequest("Lift", 2, 10, cameras=(camera,))).reset([0, 1], [0, 1])


def test_recorded_images_are_those_of_their_states(tmp_path):
    settings = demos.Settings("native", "Lift", 0, 0.1, 0.05, 300, cameras=[WRIST.model_dump()])
    out = tmp_path / "lift.hdf5"
    demos.record(settings, 1, out, parts=demos.open_parts(out, settings, False), workers=1, on_trial=lambda _: None)
    env = native("Lift", 1, cameras=(WRIST,))
    with h5py.File(out) as file:
        demo = file["data/demo_0"]
        seed, actions = int(demo.attrs["seed"]), demo["actions"][:3]
        assert draw_variant(env.task.facts, seed) > 0, "let it be a geometry of the pool"
        seen = env.reset([0], [seed])
        for time, action in enumerate(actions):
            np.testing.assert_array_equal(seen[WRIST.key][0, 0], demo[f"obs/{WRIST.key}"][time])
            seen = env.step([0], action[None, None]).observation
        assert "camera_names" in file["data"].attrs["env_args"]
    env.close()


LEFT_OPEN = """
from d2ppo_core.contract import Camera
from d2ppo_core.envs import EnvRequest, make_env
camera = Camera(name="agentview", height=32, width=32, field_of_view=45.0)
env = make_env("native", EnvRequest("Lift", 2, 10, workers=2, cameras=(camera,)))
env.reset([0, 1], [0, 1])
"""


def test_a_process_that_leaves_its_cameras_open_ends_in_peace():
    ran = subprocess.run([sys.executable, "-c", LEFT_OPEN], check=False, capture_output=True, timeout=120)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
