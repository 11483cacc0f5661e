"""A scene put together by hand looks as the simulator's own does."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.sim
pytest.importorskip("d2ppo_sim.robosuite_env")  # not robosuite itself: the OpenGL backend is not chosen yet

from d2ppo_core.errors import UserError  # noqa: E402
from d2ppo_core.tasks import load_task  # noqa: E402
from d2ppo_sim.robot import SimulatedRobot  # noqa: E402
from d2ppo_sim.staged import StagedScene  # noqa: E402


@pytest.fixture(scope="module")
def scene():
    made = StagedScene("Lift")
    yield made
    made.close()


def test_every_pixel_is_the_simulators(scene: StagedScene) -> None:
    """Joints, fingers and cube as they are at a reset, which are symmetrical, and the size that this cube has."""
    robot = SimulatedRobot(load_task("lift_image"))
    robot.reset(7)
    for name, value in robot.env.worlds.fields[0].items():
        getattr(scene.model, name)[...] = value
    (arm,), (cube,) = scene.facts.arms, scene.facts.placements
    qpos, (camera,) = robot.env.data[0].qpos, robot.observation.cameras
    scene.put_arm(0, qpos[list(arm.qpos)], float(np.abs(qpos[list(arm.finger_qpos)]).sum()))
    place = qpos[cube.qpos : cube.qpos + 7]
    scene.put_object("cube", place[:3], np.roll(place[3:], -1))
    seen = scene.picture(camera, camera.height, camera.width)
    expected = robot.pictures(robot.view())[camera.key]
    robot.close()
    np.testing.assert_array_equal(seen, expected)
    scene.put_object("cube", (0.0, 0.0, 0.83), np.roll(place[3:], -1))
    assert (scene.picture(camera, camera.height, camera.width) != expected).any()
    wide = scene.picture(camera, 48, 96)
    assert wide.shape == (48, 96, 3) and wide.std() > 10


def test_what_the_scene_has_not_is_refused(scene: StagedScene) -> None:
    for wrong, says in (
        (lambda: scene.put_arm(1, [0.0] * 7, 0.0), "no arm 1"), (lambda: scene.put_arm(0, [0.0] * 6, 0.0), "7 joints"),
        (lambda: scene.put_object("can", [0, 0, 0], [0, 0, 0, 1]), "it has cube"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            wrong()
