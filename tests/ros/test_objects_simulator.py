"""The object vector against the simulator's own, number by number, from the simulator's true poses."""

from __future__ import annotations

import numpy as np
import pytest

from d2ppo_ros.objects.layout import object_vector
from d2ppo_ros.objects.smoothing import QuaternionSign

pytestmark = pytest.mark.sim
pytest.importorskip("d2ppo_sim.robosuite_env")

from d2ppo_core.envs import EnvRequest  # noqa: E402
from d2ppo_sim.native.vector import make_native  # noqa: E402


def body_pose(env) -> tuple[np.ndarray, np.ndarray]:
    """(3,) m and (4,) xyzw of the task's object, straight from MuJoCo."""
    body = env.task.facts.reads[0].id
    return env.data[0].xpos[body].copy(), np.roll(env.data[0].xquat[body], -1)


@pytest.mark.parametrize(
    ("task", "environment", "bound"),
    [("lift", "Lift", 0.0), ("can", "PickPlaceCan", 1e-6), ("square", "NutAssemblySquare", 1e-6)],
)
def test_object_vector_equals_the_simulators(task, environment, bound):
    """Lift's to the last bit; the others pass through float32 in the simulator."""
    env, rng = make_native(EnvRequest(environment, 1, 300, 1, False)), np.random.default_rng(0)
    for seed in range(4):
        seen, sign = env.reset([0], [seed]), QuaternionSign()
        for _ in range(10):
            position, quaternion = body_pose(env)
            state = {key: value[0, -1] for key, value in seen.items()}
            vector = object_vector(task, position, quaternion, state["robot0_eef_pos"], state["robot0_eef_quat"])
            np.testing.assert_allclose(vector, state["object"], rtol=0, atol=bound)
            # A camera does not know the sign: the rule finds the simulator's own, whichever comes in.
            np.testing.assert_array_equal(sign(rng.choice([-1.0, 1.0]) * quaternion), state["object"][3:7])
            seen = env.step([0], rng.uniform(-1, 1, (1, 2, env.action.size))).observation
    env.close()
