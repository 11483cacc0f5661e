"""Taking out of a model what costs time and cannot matter: the trajectories of a task stay the same, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

# Bodies of one Panda, by the number of the link (8: the hand). With the joints between them anywhere inside their
# ranges, and 0.1 rad beyond, links two apart stay more than 2 cm away from each other, and link 1 turns 1 mm above
# link 0 (swept by tests/sim/test_trimming.py). Links 5 and 7, and 5 and the hand, can touch and are not listed.
NEVER_TOUCH = ((0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (6, 8))

ALL_BITS = 2**31 - 1


def trim(model: Any, unused_joints: list[int], arms: int) -> None:
    """Change a compiled model in place.

    Args:
        unused_joints: ids of the free joints of objects that the task does not use.
        arms: how many Pandas, named robot0 ... by robosuite.
    """
    import mujoco

    for joint in unused_joints:
        _drop_contacts(model, joint)
    for arm in range(arms):
        _drop_neighbours(model, arm)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)  # nobody reads them; 3 % of the time


def _drop_contacts(model: Any, joint: int) -> None:
    """An unused object takes no part in contacts."""
    bodies = np.flatnonzero(model.body_rootid == model.body_rootid[model.jnt_bodyid[joint]])
    geoms = np.isin(model.geom_bodyid, bodies)
    model.geom_contype[geoms] = model.geom_conaffinity[geoms] = 0
    model.body_contype[bodies] = model.body_conaffinity[bodies] = 0


def arm_bodies(model: Any, arm: int) -> list[int]:
    """Ids of links 0 to 7 and of the hand of one Panda."""
    names = [f"robot{arm}_link{n}" for n in range(8)] + [f"gripper{arm}_right_gripper"]
    return [model.body(name).id for name in names]


def _drop_neighbours(model: Any, arm: int) -> None:
    """No collision test between links that cannot touch; a link still meets all else as before.

    Two geoms are tested if the contype of one shares a bit with the conaffinity of the other; everybody else's bit is
    1. A link gets a second bit in its contype, and as conaffinity the second bits of the links that it may meet.
    """
    bodies = arm_bodies(model, arm)
    bits = {n: 2 << (n + len(bodies) * arm) for n in range(len(bodies))}
    before = _tested(model)
    for n, body in enumerate(bodies):
        forbidden = {a if b == n else b for a, b in NEVER_TOUCH if n in (a, b)} | {n}
        geoms = (model.geom_bodyid == body) & (model.geom_contype != 0)
        model.geom_contype[geoms] = model.body_contype[body] = 1 | bits[n]
        affinity = ALL_BITS - 1 - sum(bits[other] for other in forbidden)
        model.geom_conaffinity[geoms] = model.body_conaffinity[body] = affinity
    after = _tested(model)
    links = {int(body): n for n, body in enumerate(bodies)}
    for a, b in np.argwhere(before != after):
        pair = sorted((links.get(int(model.geom_bodyid[a]), -1), links.get(int(model.geom_bodyid[b]), -1)))
        if pair[0] != pair[1] and tuple(pair) not in NEVER_TOUCH:
            raise RuntimeError(f"trimming would change collisions of geoms {a} and {b}")


def _tested(model: Any) -> np.ndarray:
    """(ngeom, ngeom) bool: whether MuJoCo's masks let it test a pair of geoms."""
    one_way = (model.geom_contype[:, None] & model.geom_conaffinity[None, :]) != 0
    return one_way | one_way.T
