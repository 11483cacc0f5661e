"""Where an episode starts: robosuite's distributions, drawn from a generator that the seed alone names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .task_model import Placement, TaskFacts

ATTEMPTS = 5000  # at placing one object apart from the others; robosuite gives up then, we draw all of them anew
HIDDEN = (10.0, 10.0, 10.0, 1.0, 0.0, 0.0, 0.0)  # m, wxyz: where robosuite moves what a task does not use


def draw_variant(facts: TaskFacts, seed: int) -> int:
    """Which geometry the episode named by `seed` has. robosuite draws it anew at every (hard) reset."""
    return int(np.random.default_rng((0x6E0, seed)).integers(1 + len(facts.other_placements)))


def draw_start(facts: TaskFacts, qpos0: np.ndarray, seed: int, variant: int) -> np.ndarray:
    """(nq,) positions at the start of the episode named by `seed`, for its geometry."""
    rules = facts.placements_of(variant)
    rng = np.random.default_rng((0x57A27, seed))
    qpos = qpos0.copy()
    for arm in facts.arms:
        qpos[list(arm.qpos)] = np.array(arm.start) + arm.noise * rng.standard_normal(len(arm.start))
        qpos[list(arm.finger_qpos)] = arm.finger_start
    placed = None
    while placed is None:
        placed = _place(rules, rng)
    for rule in rules:
        pose = placed[rule.name] if rule.shown else np.array(HIDDEN)
        if rule.inside:
            pose[:2] = placed[rule.inside][:2]
        qpos[rule.qpos : rule.qpos + 7] = pose
    return qpos


def _place(rules: Sequence[Placement], rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """By name (7,): position and quaternion wxyz of each object in turn; None if one found no room."""
    placed: dict[str, np.ndarray] = {}
    earlier: list[Placement] = []
    for rule in rules:
        for _ in range(ATTEMPTS):
            position = np.array([rng.uniform(*rule.x), rng.uniform(*rule.y), rule.z])
            if not rule.apart or all(_apart(rule, position, other, placed[other.name]) for other in earlier):
                break
        else:
            return None
        placed[rule.name] = np.concatenate([position, _rotation(rule, rng)])
        earlier.append(rule)
    return placed


def _apart(rule: Placement, position: np.ndarray, other: Placement, pose: np.ndarray) -> bool:
    """Whether two upright cylinders around the objects leave room between them, beside or above."""
    beside = np.hypot(*(position[:2] - pose[:2])) > rule.radius + other.radius
    return bool(beside or position[2] - pose[2] > other.top - rule.bottom)


def _rotation(rule: Placement, rng: np.random.Generator) -> np.ndarray:
    """(4,) quaternion wxyz."""
    angle = rng.uniform(*rule.angle)
    quaternion = np.zeros(4)
    quaternion[0], quaternion[1 + "xyz".index(rule.axis)] = np.cos(angle / 2), np.sin(angle / 2)
    if rule.turned:
        quaternion = _robosuite_product(quaternion, np.array(rule.turned[rng.integers(len(rule.turned))]))
    return quaternion


def _robosuite_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """robosuite's product of quaternions, whose formula is for xyzw, of quaternions that it takes as wxyz, in float32.

    Kept because it decides how the hammer lies.
    """
    (x1, y1, z1, w1), (x0, y0, z0, w0) = left, right
    product = (
        x1 * w0 + y1 * z0 - z1 * y0 + w1 * x0,
        -x1 * z0 + y1 * w0 + z1 * x0 + w1 * y0,
        x1 * y0 - y1 * x0 + z1 * w0 + w1 * z0,
        -x1 * x0 - y1 * y0 - z1 * z0 + w1 * w0,
    )
    return np.array(product, dtype=np.float32).astype(np.float64)
