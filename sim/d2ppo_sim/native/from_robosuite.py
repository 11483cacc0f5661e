"""Reading a task model off a live robosuite environment: robosuite builds, the core steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..robosuite_env import CAMERAS, MODEL_SEED, RobosuiteEnv, compiled, numpy_seeded
from .task_model import Arm, Control, Placement, Read, Success, TaskFacts, TaskModel
from .trimming import trim
from .variants import compare

POSTURE_KP = 10.0  # of robosuite's null-space torques
SAMPLED = ("Lift", "TwoArmTransport")  # whose hard reset draws the cube's size, the hammer's head
VARIANTS = 16  # geometries of those, the first included
HAMMER_TURNS = ((0.5, -0.5, 0.5, -0.5), (-0.5, -0.5, -0.5, -0.5))  # robosuite draws one of them


def build(environment: str) -> TaskModel:
    """The task as robosuite builds it, trimmed of what cannot matter."""
    import mujoco

    compiled.cache_clear()  # MuJoCo writes the MJCF of the model that it compiled last
    live = RobosuiteEnv(environment)
    try:
        env = live.env
        reads, success, groups = _reading(environment, env)
        model, placements, xmls = _trimmed(env), [], []
        variants = compare(_geometries(live, placements, xmls))
        facts = TaskFacts(
            mujoco=mujoco.__version__,
            environment=environment,
            observation=live.observation,
            action=live.action,
            simulator=live.simulator.model_copy(update={"name": "robosuite-native"}),
            arms=tuple(_arm(env, robot) for robot in env.robots),
            placements=placements[0],
            other_placements=tuple(placements[1:]),
            reads=reads,
            success=success,
            touch_groups=groups,
            control=_control(env),
            camera=CAMERAS.get(environment, "agentview"),
            env_args=live.env_args(),
        )
        return TaskModel(facts, _binary(model), tuple(xmls), variants)
    finally:
        live.close()


def _geometries(live: RobosuiteEnv, placements: list[tuple[Placement, ...]], xmls: list[str]) -> Iterator[Any]:
    """The trimmed model as it is, then those that robosuite's hard resets draw; fills in their rules and MJCF."""
    env, count = live.env, VARIANTS if live.environment in SAMPLED else 1
    env.hard_reset = True
    for number in range(count):
        if number:
            with numpy_seeded(MODEL_SEED + number):
                env.reset()
        placements.append(tuple(_placements(env)))
        xmls.append(live.model_xml())
        yield _trimmed(env)


def _trimmed(env: Any) -> Any:
    model = copy.copy(env.sim.model._model)
    unused = [int(np.flatnonzero(model.jnt_qposadr == p.qpos)[0]) for p in _placements(env) if not p.shown]
    trim(model, unused, len(env.robots))
    return model


def _binary(model: Any) -> bytes:
    import mujoco

    buffer = np.zeros(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def _arm(env: Any, robot: Any) -> Arm:
    if robot.initialization_noise["type"] != "gaussian":
        raise RuntimeError("the starts are drawn with Gaussian noise of the joints")
    return Arm(
        site=int(robot.eef_site_id),
        hand=int(env.sim.model.body_name2id(robot.robot_model.eef_name)),
        qpos=_ints(robot._ref_joint_pos_indexes),
        dof=_ints(robot._ref_joint_vel_indexes),
        motor=_ints(robot._ref_joint_actuator_indexes),
        finger_qpos=_ints(robot._ref_gripper_joint_pos_indexes),
        finger_motor=_ints(robot._ref_joint_gripper_actuator_indexes),
        start=_floats(robot.init_qpos),
        finger_start=_floats(robot.gripper.init_qpos),
        noise=float(robot.initialization_noise["magnitude"]),
    )


def _control(env: Any) -> Control:
    controller, gripper = env.robots[0].controller, env.robots[0].gripper
    return Control(
        substeps=int(env.control_timestep / env.model_timestep),
        kp=float(controller.kp[0]),
        kd=float(controller.kd[0]),
        posture_kp=POSTURE_KP,
        gripper_speed=float(gripper.speed),
    )


def _placements(env: Any) -> Iterator[Placement]:
    """The rules of every object with a free joint, in robosuite's order. Others were placed when the model was made."""
    whole = env.placement_initializer
    samplers = list(whole.samplers.values()) if hasattr(whole, "samplers") else [whole]
    used = getattr(env, "obj_to_use", None)
    for sampler in samplers:
        for thing in sampler.mujoco_objects:
            if "visual" in thing.name.lower():
                continue
            yield _placement(env, sampler, thing, shown=used in (None, thing.name))


def _placement(env: Any, sampler: Any, thing: Any, shown: bool) -> Placement:
    bottom, radius = float(thing.bottom_offset[2]), float(thing.horizontal_radius)
    margin = radius if sampler.ensure_object_boundary_in_range else 0.0
    reference = np.asarray(sampler.reference_pos, dtype=np.float64)
    inside, raised = _container(env, thing.name)
    turn = (0.0, 2 * np.pi) if sampler.rotation is None else (min(sampler.rotation), max(sampler.rotation))
    return Placement(
        name=thing.name,
        qpos=int(env.sim.model.get_joint_qpos_addr(thing.joints[0])[0]),
        x=_pair(np.array(sampler.x_range) + [margin, -margin] + reference[0]),
        y=_pair(np.array(sampler.y_range) + [margin, -margin] + reference[1]),
        z=float(sampler.z_offset + reference[2] - bottom + raised),
        angle=_pair(turn),
        axis=sampler.rotation_axis,
        turned=HAMMER_TURNS if hasattr(thing, "init_quat") else (),
        inside=inside,
        apart=bool(sampler.ensure_valid_placement),
        radius=radius,
        top=float(thing.top_offset[2]),
        bottom=bottom,
        shown=shown,
    )


def _container(env: Any, name: str) -> tuple[str, float]:
    """Transport puts lid, payload and trash into bins: (whose x and y it takes, how much higher it lies in m)."""
    if not hasattr(env, "transport"):
        return "", 0.0
    group = env.transport
    start, target = group.objects["start_bin"], group.objects["target_bin"]
    return {
        group.lid.name: (start.name, float(group.bin_size[2])),
        group.payload.name: (start.name, float(start.wall_thickness)),
        group.trash.name: (target.name, float(target.wall_thickness)),
    }.get(name, ("", 0.0))


def _reading(environment: str, env: Any) -> tuple[tuple[Read, ...], Success, tuple[tuple[int, ...], ...]]:
    """What "object" consists of, when the task is done, and which geoms count as touching."""
    if environment == "Lift":
        cube = int(env.cube_body_id)
        kinds = ("body_position", "body_quaternion", "grip_minus_body")
        height = float(env.model.mujoco_arena.table_offset[2] + 0.04)
        return tuple(Read(kind=k, id=cube) for k in kinds), Success(kind="above", body=cube, limit=(height,)), ()
    if environment == "TwoArmTransport":
        return _transport(env.transport)
    body = int(env.obj_body_id[env.obj_to_use])
    reads = tuple(Read(kind=k, id=body) for k in ("body_position", "body_quaternion", "body_in_hand"))
    if environment == "PickPlaceCan":
        return reads, Success(kind="in_box_released", body=body, limit=_target_bin(env)), ()
    limit = (0.03, float(env.table_offset[2] + 0.05))
    return reads, Success(kind="on_peg_released", body=body, other=int(env.peg1_body_id), limit=limit), ()


def _target_bin(env: Any) -> tuple[float, ...]:
    """(6,) m: lower and upper corner of the box in which the can must come to lie."""
    (low_x, low_y, floor), which = env.bin2_pos, env.object_id
    if which in (0, 2):
        low_x -= env.bin_size[0] / 2
    if which < 2:
        low_y -= env.bin_size[1] / 2
    return _floats([low_x, low_y, floor, low_x + env.bin_size[0] / 2, low_y + env.bin_size[1] / 2, floor + 0.1])


def _transport(group: Any) -> tuple[tuple[Read, ...], Success, tuple[tuple[int, ...], ...]]:
    payload, trash = int(group.payload_body_id), int(group.trash_body_id)
    lid = int(group.lid_handle_geom_ids[0])
    target, bin_ = int(group.target_bin_base_geom_ids[0]), int(group.trash_bin_base_geom_ids[0])
    groups = (group.payload_geom_ids, group.target_bin_base_geom_ids, group.trash_geom_ids,
              group.trash_bin_base_geom_ids)
    reads = (
        Read(kind="body_position", id=payload), Read(kind="body_quaternion_from_matrix", id=payload),
        Read(kind="body_position", id=trash), Read(kind="body_quaternion_from_matrix", id=trash),
        Read(kind="geom_position", id=lid), Read(kind="geom_quaternion_from_matrix", id=lid),
        Read(kind="geom_position", id=target), Read(kind="geom_position", id=bin_),
        Read(kind="body_minus_grip", id=payload, arm=0), Read(kind="geom_minus_grip", id=lid, arm=0),
        Read(kind="body_minus_grip", id=payload, arm=1), Read(kind="body_minus_grip", id=trash, arm=1),
        Read(kind="touching", id=1, other=2), Read(kind="touching", id=4, other=8),
    )
    return reads, Success(kind="all_touching"), tuple(_ints(geoms) for geoms in groups)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _pair(values: Any) -> tuple[float, float]:
    low, high = (float(v) for v in values)
    return low, high
