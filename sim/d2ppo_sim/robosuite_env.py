"""One environment of stock robosuite 1.4.1, with DPPO's settings, whose episodes depend on their seed alone.

robosuite builds the model, resets it, controls the arm and decides on success. Only its stepping loop is our own:
the stock loop computes forward dynamics three times for each substep and evaluates every observable in Python. Ours
leaves out what has no effect; a test holds it to the stock loop, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from d2ppo_core import contract
from d2ppo_core.contract import ActionSpec, ObservationSpec, SimulatorSpec
from d2ppo_core.errors import UserError
from d2ppo_core.tasks import action_spec, load_task, observation_spec, task_names

from .episode import Observation, Outcome
from .graphics import Camera, import_robosuite
from .painter import View, view_of

ROBOTS: dict[str, dict[str, Any]] = {
    "Lift": {"robots": ["Panda"]},
    "PickPlaceCan": {"robots": ["Panda"]},
    "NutAssemblySquare": {"robots": ["Panda"]},
    "TwoArmTransport": {"robots": ["Panda", "Panda"], "env_configuration": "single-arm-opposed"},
}
PROPRIOCEPTION = ("eef_pos", "eef_quat", "gripper_qpos")  # of each arm, in the order of the state vector
CAMERAS = {"TwoArmTransport": "frontview"}  # where "agentview" shows too little
CONTROLLER: dict[str, Any] = {  # DPPO's env_meta, which is robomimic's
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],  # m, rad
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
MODEL_SEED = 0
"""Names the geometry (robosuite draws the cube's size when it builds the model): one for all environments."""


def env_kwargs(environment: str, cameras: Sequence[contract.Camera] = ()) -> dict[str, Any]:
    """What robosuite is called with; also what a dataset's `env_args` carries, with the cameras of its images."""
    if environment not in ROBOTS:
        raise UserError(f"robosuite's '{environment}' is not supported; choose one of {', '.join(ROBOTS)}")
    return {
        **ROBOTS[environment],
        "controller_configs": CONTROLLER,
        "has_renderer": False,
        "has_offscreen_renderer": bool(cameras),
        "use_camera_obs": bool(cameras),
        "use_object_obs": True,
        "camera_depths": False,
        "camera_heights": [camera.height for camera in cameras] or 84,
        "camera_widths": [camera.width for camera in cameras] or 84,
        "control_freq": 20,  # Hz
        "ignore_done": True,
        "reward_shaping": False,
        "render_gpu_device_id": 0,
        **({"camera_names": [camera.name for camera in cameras]} if cameras else {}),
    }


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Run a block with numpy's global generator seeded, from which robosuite draws; then put back what was there."""
    before = np.random.get_state()
    np.random.seed(seed if seed < 2**32 else np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32))
    try:
        yield
    finally:
        np.random.set_state(before)


@lru_cache(maxsize=4)
def compiled(xml: str) -> Any:
    """One compiled model for all environments of a process: saves 0.25 s and 70 MB for each."""
    import mujoco

    return mujoco.MjModel.from_xml_string(xml)


def make_stock(environment: str) -> Any:
    """The untouched robosuite environment, with the geometry of `MODEL_SEED` and soft resets (as DPPO sets)."""
    kwargs = env_kwargs(environment)
    robosuite = import_robosuite()
    from robosuite.utils.binding_utils import MjSim

    original = MjSim.__dict__["from_xml_string"]
    MjSim.from_xml_string = classmethod(lambda cls, xml: cls(compiled(xml)))
    try:
        with numpy_seeded(MODEL_SEED):
            return robosuite.make(environment, hard_reset=False, **kwargs)
    finally:
        MjSim.from_xml_string = original


class RobosuiteEnv:
    """A `Simulation` (see `episode.py`) of one robosuite task, with images of `cameras` where they are asked for."""

    def __init__(self, environment: str, cameras: Sequence[contract.Camera] = ()) -> None:
        self.environment = environment
        self.env = make_stock(environment)
        with numpy_seeded(MODEL_SEED):  # the first reset still moves things that later ones find in place
            self._first = self._read(self.env.reset())
        self._camera = Camera(self.model)
        self._cameras = tuple(self._camera.checked(camera, environment) for camera in cameras)
        self._sensors = self._needed_sensors()
        self._last = self._first
        self.observation = self._observation_spec()
        self.action = self._action_spec()
        self.simulator = self._simulator_spec()

    @property
    def model(self) -> Any:
        """MuJoCo's own, shared by all environments of this process."""
        return self.env.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's data of this environment."""
        return self.env.sim.data._data

    def reset(self, seed: int) -> Observation:
        """Start the episode named by `seed`. Leaves numpy's global generator as it was."""
        with numpy_seeded(seed):
            self._last = self._read(self.env.reset())
        return self._last

    def step(self, action: np.ndarray) -> Outcome:
        """One control step (1/20 s) under a raw action (Da,); robosuite clips it to [-1, 1]."""
        try:
            self._advance(np.asarray(action, dtype=np.float64))
        except np.linalg.LinAlgError:  # the controller's matrices, once the state is NaN
            return Outcome(self._last, 0.0, False, diverged=True)
        seen = self._sense()
        if self._diverged(seen):
            return Outcome(self._last, 0.0, False, diverged=True)
        self._last = seen
        return Outcome(seen, float(self.env.reward(action)), bool(self.env._check_success()))

    def _advance(self, action: np.ndarray) -> None:
        """robosuite's `MujocoEnv.step` without observables and without its two redundant `mj_forward` calls.

        `mj_step1` computes all that the controllers read (kinematics, Jacobians, mass matrix, bias forces), and
        `mj_step2` the rest of `mj_step`. The controllers' own call of `sim.forward` is silenced meanwhile.
        """
        import mujoco

        env, sim = self.env, self.env.sim
        model, data = sim.model._model, sim.data._data
        sim.forward = lambda: None
        try:
            for substep in range(int(env.control_timestep / env.model_timestep)):
                mujoco.mj_step1(model, data)
                env._pre_action(action, substep == 0)
                mujoco.mj_step2(model, data)
        finally:
            del sim.forward
        env.timestep += 1
        env.cur_time += env.control_timestep

    def _diverged(self, seen: Observation) -> bool:
        """Whether MuJoCo met NaN, infinity or huge values since the reset (it then resets the state by itself)."""
        import mujoco

        kinds = mujoco.mjtWarning
        bad = (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC, kinds.mjWARN_BADCTRL)
        warnings = self.env.sim.data._data.warning
        return any(warnings[int(k)].number for k in bad) or not all(np.isfinite(v).all() for v in seen.values())

    def _needed_sensors(self) -> list[tuple[str, Any, bool]]:
        """(name, sensor, whether it is part of "object") in robosuite's order of evaluation, for what a task reads.

        Sensors of the object modality read the hand's pose from the cache, so those come along, and come first.
        """
        proprio = {f"robot{i}_{part}" for i in range(len(self.env.robots)) for part in PROPRIOCEPTION}
        return [
            (name, item._sensor, item.modality == "object" and item.is_active())
            for name, item in self.env._observables.items()
            if name in proprio or item.modality == "object"
        ]

    def _sense(self) -> Observation:
        """Observations as robosuite samples them: at the last substep, after its integration."""
        cache = self.env._obs_cache
        objects = []
        for name, sensor, is_object in self._sensors:
            cache[name] = np.array(sensor(cache))
            if is_object:
                objects.append(np.atleast_1d(cache[name]))
        return self._read({**cache, "object-state": np.concatenate(objects)})

    def _read(self, raw: dict[str, Any]) -> Observation:
        """robosuite's observation under robomimic's names: for each arm pose and fingers, and "object"."""
        seen = {}
        for i in range(len(self.env.robots)):
            for part in PROPRIOCEPTION:
                seen[f"robot{i}_{part}"] = np.array(raw[f"robot{i}_{part}"], dtype=np.float64)
        seen["object"] = np.array(raw["object-state"], dtype=np.float64)
        return seen

    def _observation_spec(self) -> ObservationSpec:
        """Names and sizes as the live environment has them; the words (unit, frame, …) from the task's own file."""
        words = {key.name: key for key in observation_spec(_task_of(self.environment)).lowdim}
        bodies = {}
        for i, robot in enumerate(self.env.robots):
            bodies[f"robot{i}_eef_pos"] = robot.gripper.important_sites["grip_site"]
            bodies[f"robot{i}_eef_quat"] = robot.robot_model.eef_name
        lowdim = tuple(
            words[name].model_copy(update={"size": len(value), "body": bodies.get(name, words[name].body)})
            for name, value in self._first.items()
        )
        return ObservationSpec(lowdim=lowdim, cameras=self._cameras)

    def _action_spec(self) -> ActionSpec:
        """Scales, rate and number of arms as the live controllers have them."""
        position, rotation = self.env.robots[0].controller.output_max[[0, 3]]
        return action_spec(_task_of(self.environment)).model_copy(update={
            "arms": len(self.env.robots),
            "position_scale": float(position),
            "rotation_scale": float(rotation),
            "control_hz": int(self.env.control_freq),
        })

    def _simulator_spec(self) -> SimulatorSpec:
        import mujoco
        import robosuite

        about = f"{CONTROLLER['type']} kp {CONTROLLER['kp']} damping {CONTROLLER['damping']}"
        version = f"{robosuite.__version__}, mujoco {mujoco.__version__}"
        return SimulatorSpec(name="robosuite", version=version, environment=self.environment, controller=about)

    def state(self) -> np.ndarray:
        """(1 + nq + nv,) float64: time, qpos, qvel, as robomimic keeps them."""
        return np.array(self.env.sim.get_state().flatten())

    def model_xml(self) -> str:
        """The model as one MJCF text."""
        return self.env.sim.model.get_xml()

    def env_args(self) -> dict[str, Any]:
        """robomimic's description of this environment, from which it can be rebuilt."""
        import robosuite

        return {
            "env_name": self.environment,
            "env_version": robosuite.__version__,
            "type": 1,  # robomimic's EnvType.ROBOSUITE_TYPE
            "env_kwargs": env_kwargs(self.environment, self._cameras),
        }

    def render(self, height: int, width: int, camera: str = "") -> np.ndarray:
        """(height, width, 3) uint8 RGB, upright, from `camera` or from the task's usual one."""
        camera = camera or CAMERAS.get(self.environment, "agentview")
        return self._camera.picture(self.env.sim.data._data, camera, height, width)

    def view(self) -> View:
        """Where everything stands now; from there `images` can be made later."""
        return view_of(self.data)

    def images(self, view: View) -> Observation:
        """By key (H, W, 3) uint8: what each camera saw at `view`. At stock settings, robosuite's own camera images."""
        return {camera.key: self._camera.image(self.data, view, camera) for camera in self._cameras}

    def close(self) -> None:
        """Free the simulation and its OpenGL context."""
        self._camera.close()
        if self.env is not None:
            self.env.close()
            self.env = None


def _task_of(environment: str) -> Any:
    """The task group file whose environment this is, with the whole state: the one without cameras."""
    tasks = (task for task in map(load_task, task_names()) if task.environment == environment)
    return next(task for task in tasks if not task.observation.get("cameras"))
