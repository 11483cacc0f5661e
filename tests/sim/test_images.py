"""Camera images: upright, equal to robosuite's own at its settings, once a chunk, for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest

from d2ppo_core import opengl
from d2ppo_core.contract import Camera
from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.errors import UserError
from d2ppo_core.tasks import load_task, observation_spec
from d2ppo_sim import graphics, image_bench, painter, robosuite_env
from d2ppo_sim.robosuite_env import RobosuiteEnv, numpy_seeded

pytestmark = pytest.mark.sim
IMAGE_TASKS = ("lift_image", "can_image", "square_image", "transport_image")
WRIST = Camera(name="robot0_eye_in_hand", height=96, width=96, field_of_view=75.0)
FRONT = Camera(name="agentview", height=64, width=96, field_of_view=45.0)
STOCK = {"reflections": True, "multisampling": 4}

# Four boxes as the camera sees them, looking down with the world's y up: red | green above, blue | white below.
CORNERS = """
<mujoco><visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual><worldbody>
<camera name="down" pos="0 0 2" fovy="50"/>
<geom type="box" pos="-.5 .5 0" size=".5 .5 .1" rgba="1 0 0 1"/>
<geom type="box" pos=".5 .5 0" size=".5 .5 .1" rgba="0 1 0 1"/>
<geom type="box" pos="-.5 -.5 0" size=".5 .5 .1" rgba="0 0 1 1"/>
<geom type="box" pos=".5 -.5 0" size=".5 .5 .1" rgba="1 1 1 1"/>
</worldbody></mujoco>"""
RED, GREEN, BLUE, WHITE = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)


@pytest.mark.parametrize(("origin", "colour", "expected"), [
    ("top_left", "rgb", (RED, GREEN, BLUE, WHITE)),
    ("bottom_left", "rgb", (BLUE, WHITE, RED, GREEN)),
    ("top_left", "bgr", (BLUE, GREEN, RED, WHITE)),
])
def test_corners_are_where_the_contract_says(origin, colour, expected):
    opengl.choose_backend()
    import mujoco

    model = mujoco.MjModel.from_xml_string(CORNERS)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    seen = Camera(name="down", height=32, width=48, field_of_view=50.0, origin=origin, colour=colour)
    camera = graphics.Camera(model)
    model.geom_group[:] = 1  # what robosuite shows
    image = camera.image(data, painter.view_of(data), seen)
    camera.close()
    assert image.shape == (32, 48, 3) and image.dtype == np.uint8
    corners = [image[row, column] > 127 for row in (4, -5) for column in (12, -13)]  # the first row first
    assert [tuple(corner.astype(int)) for corner in corners] == list(expected)


ACTIONS = (np.array([0.5, 0.3, -1, 0.2, 0, 0.4, -1]), np.array([0, 1.0, -1, 0, 0.3, 0, 1]))


def robosuites_own(names: list[str]) -> list[dict]:
    """Observations of stock robosuite with its camera images. It expects its OpenGL context to stay current."""
    kwargs = robosuite_env.env_kwargs("Lift") | {
        "has_offscreen_renderer": True, "use_camera_obs": True, "camera_names": names,
        "camera_heights": [64, 96], "camera_widths": [96, 96],
    }  # fmt: skip
    with numpy_seeded(robosuite_env.MODEL_SEED):
        stock = graphics.import_robosuite().make("Lift", hard_reset=False, **kwargs)
        stock.reset()
    with numpy_seeded(3):
        seen = [stock.reset()]
    seen += [stock.step(action)[0] for action in ACTIONS]
    stock.close()
    return seen


def test_images_equal_robosuites_own_at_its_settings():
    """robosuite hands out OpenGL's bottom row first; robomimic flips it before it is stored."""
    expected = robosuites_own([FRONT.name, WRIST.name])
    ours = RobosuiteEnv("Lift", [camera.model_copy(update=STOCK) for camera in (FRONT, WRIST)])
    ours.reset(3)
    for time, seen in enumerate(expected):
        if time:
            ours.step(ACTIONS[time - 1])
        for name, image in ours.images(ours.view()).items():
            np.testing.assert_array_equal(image, seen[name][::-1])
    ours.close()


@pytest.fixture(scope="module")
def lift():
    env = RobosuiteEnv("Lift", (FRONT, WRIST))
    env.reset(1)
    yield env
    env.close()


def test_settings_change_pixels_and_leaving_out_what_is_unseen_does_not(lift, monkeypatch):
    view = lift.view()
    fast = lift.images(view)
    monkeypatch.setattr(painter.Painter, "_leave_out_unseen", lambda *_: None)
    whole = lift.images(view)
    for name, image in fast.items():
        np.testing.assert_array_equal(image, whole[name])
    for change in ({"multisampling": 4}, {"reflections": True}):
        assert not np.array_equal(lift._camera.image(lift.data, view, FRONT.model_copy(update=change)), fast[FRONT.key])


def test_pictures_of_two_settings_in_turn_do_not_mix(lift):
    """As when a policy's images and a video's pictures are painted in turn."""
    view, smooth = lift.view(), FRONT.model_copy(update={"multisampling": 4, "reflections": True})
    first = [lift._camera.image(lift.data, view, camera) for camera in (FRONT, smooth)]
    assert not np.array_equal(*first)
    for _ in range(2):
        for camera, image in zip((FRONT, smooth), first, strict=True):
            np.testing.assert_array_equal(lift._camera.image(lift.data, view, camera), image)


def test_an_earlier_view_is_painted_later_and_leaves_the_simulation_alone(lift):
    lift.reset(2)
    before, image = lift.view(), lift.images(lift.view())
    lift.step(np.array([1.0, 0, -1, 0, 0, 0, 1]))
    state, now = lift.state(), lift.view()
    again = lift.images(before)
    for name in image:
        np.testing.assert_array_equal(again[name], image[name])
        assert not np.array_equal(lift.images(now)[name], image[name])
    np.testing.assert_array_equal(lift.state(), state)
    for left, right in zip(lift.view(), now, strict=True):
        np.testing.assert_array_equal(left, right)


def rollout(workers: int, history: int = 1) -> list[dict]:
    """Observations of 2 environments: at the start and after each of two chunks of 3 steps."""
    request = EnvRequest("Lift", 2, 20, history, workers=workers, cameras=(WRIST,))
    env = make_env("robosuite", request)
    chunks = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3, 7))
    seen = [env.reset([0, 1], [5, 6])] + [env.step([0, 1], chunk).observation for chunk in chunks]
    assert env.observation.cameras == (WRIST,)
    if workers == 1:
        assert len(painter.PAINTERS._painters) == 1, "one OpenGL context for all environments of a process"
    env.close()
    return seen


def test_vector_env_returns_images_for_any_number_of_workers():
    one, two = rollout(1), rollout(2)
    for left, right in zip(one, two, strict=True):
        assert left[WRIST.key].shape == (2, 1, 96, 96, 3) and left[WRIST.key].dtype == np.uint8
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])
    assert not np.array_equal(one[0][WRIST.key], one[1][WRIST.key])


def test_history_of_images_is_of_the_last_control_steps():
    whole = rollout(1, history=2)
    np.testing.assert_array_equal(whole[0][WRIST.key][:, 0], whole[0][WRIST.key][:, 1])
    env = make_env("robosuite", EnvRequest("Lift", 1, 20, workers=1, cameras=(WRIST,)))
    env.reset([0], [5])
    chunk = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3, 7))[0, 0]
    single = [env.step([0], chunk[None, t : t + 1]).observation[WRIST.key][0, 0] for t in range(3)]
    np.testing.assert_array_equal(whole[1][WRIST.key][0], np.stack(single[1:]))
    env.close()


def test_one_picture_a_chunk(monkeypatch):
    painted = []
    paint = painter.Painter.paint
    monkeypatch.setattr(painter.Painter, "paint", lambda *a: painted.append(1) or paint(*a))
    env = make_env("robosuite", EnvRequest("Lift", 1, 20, workers=1, cameras=(WRIST,)))
    env.reset([0], [5])
    env.step([0], np.zeros((1, 8, 7)))
    env.close()
    assert len(painted) == 2


@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_task_states_what_the_simulator_has(name):
    task, state = load_task(name), load_task(name.removesuffix("_image"))
    spec = observation_spec(task)
    assert task.environment == state.environment and task.max_episode_steps == state.max_episode_steps
    assert spec.lowdim == tuple(key for key in observation_spec(state).lowdim if key.name != "object")
    assert all((c.height, c.width, c.reflections, c.multisampling) == (96, 96, False, 0) for c in spec.cameras)
    env = RobosuiteEnv(task.environment, spec.cameras)
    env.reset(0)
    images = env.images(env.view())
    assert list(images) == [camera.key for camera in spec.cameras]
    assert all(image.std() > 10 for image in images.values())
    env.close()


@pytest.mark.parametrize(("camera", "expected"), [
    (WRIST.model_copy(update={"field_of_view": 60.0}), "of 75 degrees, the contract says 60"),
    (WRIST.model_copy(update={"name": "nose"}), "no camera 'nose'; the model has frontview"),
    (WRIST.model_copy(update={"multisampling": 1024}), "OpenGL offers at most"),
])
def test_what_the_simulator_cannot_show_is_refused(camera, expected):
    with pytest.raises(UserError, match=expected):
        env = RobosuiteEnv("Lift", (camera,))
        env.images(env.view())


def test_simulators_without_images_say_so():
    with pytest.raises(UserError, match="'toy' renders no camera images"):
        make_env("toy", EnvRequest("Reach", 1, 10, cameras=(WRIST,)))


def test_bench_names_every_camera_and_both_settings():
    tasks = image_bench.image_tasks()
    assert tasks == sorted(IMAGE_TASKS)
    (row,) = image_bench.bench_images("lift_image", repeats=2)
    assert row["camera"] == "robot0_eye_in_hand" and row["size"] == "96x96"
    assert 0 < row["ours"]["cpu_ms"] < row["stock"]["cpu_ms"]
