"""Domain randomisation: named terms, each with its range and unit, drawn for each episode from (its seed, its name).

So a term draws the same whether others are on or not, and an episode does not depend on workers or on those before it.
The simulators apply what is drawn here: `randomised_env.py`, `native/worlds.py` and `disturbance.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from d2ppo_core.contract import Frozen, LowDim
from d2ppo_core.errors import UserError
from d2ppo_core.tasks import validated

Range = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(ge=1)]
Arrays = dict[str, np.ndarray]
"""Fields of MuJoCo's model by name, whole arrays."""

VISUAL = 1  # robosuite's group of geoms that are seen
ROBOT = ("robot", "gripper", "mount")  # how bodies of arms, hands and pedestals are named
WEIGHT = ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0",
          "tendon_invweight0", "actuator_acc0")  # what follows from the masses


class CameraPose(Frozen):
    """Every camera of the contract, in the frame of the body it is mounted on."""

    position: Range = 0.0  # m, along each axis, uniform in +-position
    rotation: Range = 0.0  # degrees about an axis drawn from the sphere, uniform in +-rotation


class Light(Frozen):
    """Every light of the scene."""

    position: Range = 0.0  # m, along each axis, uniform in +-position
    diffuse: Annotated[float, Field(ge=0, le=1)] = 0.0  # share: brightness times a factor uniform in 1 +- diffuse


class Colour(Frozen):
    """One tint for each body, added to its colour; a texture is multiplied by that colour."""

    rgb: Annotated[float, Field(ge=0, le=1)] = 0.0  # each of red, green, blue in [0, 1], uniform in +-rgb
    geoms: tuple[str, ...] = ()  # which ones; none named: everything that is seen but the robots


class Mass(Frozen):
    """Mass and inertia of every object that moves freely."""

    factor: Factor = 1.0  # times a number drawn log-uniformly from [1 / factor, factor], one for each object


class Friction(Frozen):
    """Sliding friction of every object that moves freely, and of the finger pads: MuJoCo takes the larger of two."""

    factor: Factor = 1.0  # times a number drawn log-uniformly from [1 / factor, factor], one for each object and hand


class ObservationNoise(Frozen):
    """Normal noise on what the policy sees, anew at each control step; quaternions are normalised again."""

    eef_pos: Range = 0.0  # standard deviation, m
    eef_quat: Range = 0.0  # of each component
    gripper_qpos: Range = 0.0  # m
    object: Range = 0.0  # of each number of the object state
    measured: dict[str, tuple[Range, ...]] = Field(default_factory=dict)  # by whole key, instead of the above


class ActionNoise(Frozen):
    """Normal noise on what is executed, unknown to the policy; not on the gripper."""

    std: Range = 0.0  # of the action range, whose ends are -1 and 1


class Latency(Frozen):
    """What the policy sees is this old: one number for an episode, uniform in least..most. Success is not delayed."""

    least: Annotated[int, Field(ge=0)] = 0  # control steps
    most: Annotated[int, Field(ge=0)] = 0  # control steps

    @model_validator(mode="after")
    def _ordered(self) -> Latency:
        if self.least > self.most:
            raise ValueError(f"least is {self.least}, more than most, {self.most}")
        return self


class Randomisation(Frozen):
    """All terms; each is off by default."""

    camera: CameraPose = CameraPose()
    light: Light = Light()
    colour: Colour = Colour()
    mass: Mass = Mass()
    friction: Friction = Friction()
    observation_noise: ObservationNoise = ObservationNoise()
    action_noise: ActionNoise = ActionNoise()
    latency: Latency = Latency()


def parse(terms: dict[str, Any]) -> Randomisation:
    """Plain data, as `EnvRequest.randomise` carries it; a `UserError` names every wrong number."""
    return validated(Randomisation, terms, "randomise")


def generator(seed: int, term: str) -> np.random.Generator:
    """The generator of one term in one episode."""
    return np.random.default_rng([*term.encode(), seed])


def factors(rng: np.random.Generator, factor: float, count: int) -> np.ndarray:
    """(count,) numbers, log-uniform in [1 / factor, factor]."""
    return np.exp(rng.uniform(-1, 1, count) * np.log(factor))


def draw_model(settings: Randomisation, model: Any, data: Any, cameras: Sequence[str], seed: int) -> Arrays:
    """The model's fields as they are in the episode of `seed`; only those that its terms change. `data` is scratch."""
    drawn: Arrays = {}
    if settings.camera != CameraPose():
        drawn |= _camera(settings.camera, model, cameras, generator(seed, "camera"))
    if settings.light != Light():
        drawn |= _light(settings.light, model, generator(seed, "light"))
    if settings.colour.rgb > 0:
        drawn |= _colour(settings.colour, model, generator(seed, "colour"))
    if settings.mass != Mass():
        drawn |= _mass(settings.mass, model, data, generator(seed, "mass"))
    if settings.friction != Friction():
        drawn |= _friction(settings.friction, model, generator(seed, "friction"))
    return drawn


def _camera(term: CameraPose, model: Any, cameras: Sequence[str], rng: np.random.Generator) -> Arrays:
    import mujoco

    position, rotation = model.cam_pos.copy(), model.cam_quat.copy()
    for name in cameras:
        number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        position[number] += rng.uniform(-term.position, term.position, 3)
        axis, angle = rng.normal(size=3), np.radians(rng.uniform(-term.rotation, term.rotation))
        turn = np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), angle)
        mujoco.mju_mulQuat(rotation[number], model.cam_quat[number], turn)  # about the camera's own axes
    return {"cam_pos": position, "cam_quat": rotation}


def _light(term: Light, model: Any, rng: np.random.Generator) -> Arrays:
    position = model.light_pos + rng.uniform(-term.position, term.position, model.light_pos.shape)
    brightness = 1 + rng.uniform(-term.diffuse, term.diffuse, (model.nlight, 1))
    return {"light_pos": position, "light_diffuse": model.light_diffuse * brightness.astype(np.float32)}


def _colour(term: Colour, model: Any, rng: np.random.Generator) -> Arrays:
    chosen = _coloured_geoms(model, term.geoms)
    colour = model.geom_rgba.copy()
    tint = rng.uniform(-term.rgb, term.rgb, (model.nbody, 3))
    for geom in chosen:
        material = model.geom_matid[geom]
        own = model.geom_rgba[geom]  # MuJoCo takes the material's colour unless the geom's differs from the default
        base = model.mat_rgba[material] if material >= 0 and (own == (0.5, 0.5, 0.5, 1.0)).all() else own
        colour[geom] = (*np.clip(base[:3] + tint[model.geom_bodyid[geom]], 0, 1), base[3])
    return {"geom_rgba": colour}


def _coloured_geoms(model: Any, names: Sequence[str]) -> list[int]:
    visual = {model.geom(g).name or f"#{g}": g for g in range(model.ngeom) if model.geom_group[g] == VISUAL}
    unknown = [name for name in names if name not in visual]
    if unknown:
        known = ", ".join(name for name in visual if not name.startswith("#"))
        raise UserError(f"randomise.colour.geoms: there is no geom {', '.join(unknown)} to be seen; there are {known}")
    if names:
        return [visual[name] for name in names]
    return [g for g in visual.values() if not model.body(model.geom_bodyid[g]).name.startswith(ROBOT)]


def free_objects(model: Any) -> list[np.ndarray]:
    """For each object that moves freely, its bodies' numbers."""
    import mujoco

    roots = model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
    return [np.flatnonzero(model.body_rootid == root) for root in roots]


def _mass(term: Mass, model: Any, data: Any, rng: np.random.Generator) -> Arrays:
    import mujoco

    scratch, objects = _scratch(model), free_objects(model)
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        getattr(scratch, name)[:] = getattr(model, name)  # the geometry may have changed since
    for bodies, factor in zip(objects, factors(rng, term.factor, len(objects)), strict=True):
        scratch.body_mass[bodies] *= factor
        scratch.body_inertia[bodies] *= factor
    mujoco.mj_setConst(scratch, data)  # what the solver derives from masses
    return {name: getattr(scratch, name).copy() for name in WEIGHT}


@lru_cache(maxsize=4)
def _scratch(model: Any) -> Any:
    """A copy on which derived numbers are computed: `mj_setConst` also touches what is none of our business."""
    import copy

    return copy.copy(model)


def _friction(term: Friction, model: Any, rng: np.random.Generator) -> Arrays:
    sliding = model.geom_friction.copy()
    groups = [np.flatnonzero(np.isin(model.geom_bodyid, bodies)) for bodies in free_objects(model)]
    pads = [g for g in range(model.ngeom) if model.geom(g).name.endswith("_pad_collision")]
    hands = sorted({model.geom(g).name.split("_")[0] for g in pads})
    groups += [np.array([g for g in pads if model.geom(g).name.startswith(hand)]) for hand in hands]
    for geoms, factor in zip(groups, factors(rng, term.factor, len(groups)), strict=True):
        sliding[geoms, 0] *= factor
    return {"geom_friction": sliding}


@contextmanager
def applied(model: Any, fields: Arrays) -> Iterator[None]:
    """The model with these fields; put back, bit for bit, afterwards."""
    before = {name: getattr(model, name).copy() for name in fields}
    try:
        _write(model, fields)
        yield
    finally:
        _write(model, before)


def _write(model: Any, fields: Arrays) -> None:
    for name, value in fields.items():
        getattr(model, name)[:] = value


def deviations(term: ObservationNoise, keys: Sequence[LowDim]) -> dict[str, np.ndarray]:
    """By key (size,): standard deviations of what is noisy."""
    unknown = set(term.measured) - {key.name for key in keys}
    if unknown:
        raise UserError(
            f"randomise.observation_noise: there is no observation {', '.join(sorted(unknown))}; there are "
            f"{', '.join(key.name for key in keys)}"
        )
    found = {}
    for key in keys:
        part = key.name.split("_", 1)[-1] if key.name.startswith("robot") else key.name
        std = np.array(term.measured.get(key.name, (getattr(term, part, 0.0),) * key.size))
        if std.shape != (key.size,):
            raise UserError(f"randomise.observation_noise: {key.name} has {key.size} numbers, not {len(std)}")
        if std.any():
            found[key.name] = std
    return found
