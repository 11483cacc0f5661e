"""What is trimmed from a model can never matter: swept over the joints, and compared step by step elsewhere."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from d2ppo_sim.native.trimming import NEVER_TOUCH, arm_bodies
from native_support import native

pytestmark = pytest.mark.sim
BEYOND = 0.1  # rad: joint limits are soft


def near(model, first: int, second: int, margin: float, joints: list[int], points: int) -> bool:
    """Whether two bodies come closer than `margin` (m) anywhere on a grid of the joints between them."""
    import mujoco

    data = mujoco.MjData(model)
    for body in range(model.nbody):  # only these two collide, and with each other
        mask = int(body in (first, second))
        model.body_contype[body] = model.body_conaffinity[body] = mask
    for geom in range(model.ngeom):
        solid = model.geom_bodyid[geom] in (first, second) and model.geom_contype[geom] != 0
        model.geom_contype[geom] = model.geom_conaffinity[geom] = int(solid)
    model.geom_margin[:] = margin / 2  # the margins of two geoms add up
    grids = [np.linspace(*(model.jnt_range[j] + [-BEYOND, BEYOND]), points) for j in joints]
    for angles in product(*grids):
        data.qpos[model.jnt_qposadr[joints]] = angles
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        if data.ncon:
            return True
    return False


def between(model, first: int, second: int) -> list[int]:
    """Ids of the hinges from one body of an arm to a later one."""
    joints = []
    while second != first:
        joints += [j for j in range(model.njnt) if model.jnt_bodyid[j] == second]
        second = int(model.body_parentid[second])
    return joints


@pytest.mark.parametrize("pair", NEVER_TOUCH)
def test_links_that_are_not_tested_cannot_touch(pair):
    model = native("Lift").task.compiled()
    first, second = (arm_bodies(model, 0)[n] for n in pair)
    margin = 0.0009 if pair == (0, 1) else 0.02  # m; link 1 turns just above link 0
    assert not near(model, first, second, margin, between(model, first, second), 60)


def test_the_sweep_sees_links_that_do_touch():
    model = native("Lift").task.compiled()
    bodies = arm_bodies(model, 0)
    assert near(model, bodies[5], bodies[7], 0.0, between(model, bodies[5], bodies[7]), 60)
    assert (5, 7) not in NEVER_TOUCH


@pytest.mark.parametrize("environment", ["Lift", "TwoArmTransport"])
def test_every_other_collision_is_still_tested(environment):
    """Against the masks of the model as robosuite wrote it."""
    import mujoco

    task = native(environment).task
    trimmed, whole = task.compiled(), mujoco.MjModel.from_xml_string(task.xmls[0])
    assert trimmed.ngeom == whole.ngeom

    def tested(model):
        one_way = (model.geom_contype[:, None] & model.geom_conaffinity[None, :]) != 0
        return one_way | one_way.T

    arms = {body: n for arm in range(len(task.facts.arms)) for n, body in enumerate(arm_bodies(whole, arm))}
    for a, b in np.argwhere(np.triu(tested(whole) != tested(trimmed))):
        bodies = [int(whole.geom_bodyid[g]) for g in (a, b)]
        links = tuple(sorted(arms[body] for body in bodies))
        assert links[0] == links[1] or links in NEVER_TOUCH, bodies
        assert bodies[0] == bodies[1] or abs(bodies[0] - bodies[1]) < 12, "links of two arms must collide"
    assert (tested(whole) != tested(trimmed)).any()
