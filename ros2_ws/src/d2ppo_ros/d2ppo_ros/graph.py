"""Which node processes make up a running system, and with which parameters: stated once, for `d2ppo up` and for the
launch files alike. `python -m d2ppo_ros.graph SCENARIO key=value ...` prints it as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2ppo_core.checkpoint import read_policy
from d2ppo_core.contract import PolicySpec
from d2ppo_core.errors import UserError
from d2ppo_core.machine import MIXTURE_FIX, installed, ros_mixture
from d2ppo_core.tasks import load_task

from . import cell
from .environment import environment, share
from .executor.settings import ExecutorSettings, check
from .scenarios import CommonOptions, RecordOptions, RobotOptions, SimulationOptions, SystemOptions, parse

NODES = "d2ppo_ros.nodes"
SPARE = ("recorder",)  # what a system goes on without: its end is said, and must not stop the arm


@dataclass(frozen=True)
class Process:
    """One node in its own process."""

    name: str  # of the node
    module: str  # run with python -m
    parameters: dict[str, Any] = field(default_factory=dict)  # over those of the parameter file

    def ros_arguments(self, files: list[Path]) -> list[str]:
        """What follows `--ros-args`: what comes later wins."""
        given = [part for path in files for part in ("--params-file", str(path))]
        own = [part for name, value in self.parameters.items() for part in ("-p", f"{name}:={yaml_of(value)}")]
        return ["-r", f"__node:={self.name}", *given, *own]

    def arguments(self, files: list[Path]) -> list[str]:
        """What follows `python`."""
        return ["-m", self.module, "--ros-args", *self.ros_arguments(files)]


@dataclass(frozen=True)
class System:
    """Processes that belong together."""

    processes: list[Process]  # in the order in which they are started; they are stopped the other way round
    files: list[Path]  # of parameters; the later one wins
    environment: dict[str, str]  # of each process

    def spare(self, name: str) -> bool:
        """Whether the others go on without this one."""
        return name in SPARE and name != self.processes[-1].name


def yaml_of(value: Any) -> str:
    """A parameter's value as ROS's command line reads it: as YAML, so that an empty text stays a text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_of, value))}]"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def parameter_files(scenario: str, own: str, over: Sequence[str] = ()) -> list[Path]:
    """The scenario's file, others of ours over it, and the user's over them."""
    if own and not Path(own).is_file():
        raise UserError(f"params={own}: there is no such file")
    ours = [share() / "params" / f"{name}.yaml" for name in (scenario, *over)]
    return [*ours, *([Path(own).absolute()] if own else [])]


def system(scenario: str, options: CommonOptions) -> System:
    """A scenario with these options."""
    mixture = ros_mixture(installed(), os.environ)
    if mixture:
        raise UserError(f"{mixture} cannot be used together; {MIXTURE_FIX}")
    if not options.checkpoint:
        raise UserError("no policy is given; add checkpoint=FILE (the policy.safetensors of a training run)")
    made = {SimulationOptions: simulation, RobotOptions: robot, RecordOptions: recording}[type(options)](options)
    ran = [trials(options)] if getattr(options, "trials", 0) else []
    file = "lockstep" if getattr(options, "lockstep", False) else scenario
    domain = {"ROS_DOMAIN_ID": str(options.domain)} if options.domain >= 0 else {}
    over = ["standin"] if getattr(options, "standin", False) else []
    return System([*made, *ran], parameter_files(file, options.params, over), environment() | domain)


def simulation(options: SimulationOptions) -> list[Process]:
    """Everything against the simulator."""
    spec = read_policy(options.checkpoint)[0]
    task, common = options.task or spec.task, {"lockstep": options.lockstep}
    _require_robot(options.checkpoint, spec, task)
    return [
        Process("sim", f"{NODES}.sim", {"task": task, "limits": options.profile} | common | _lateness(options)),
        *cameras(spec, task),
        *_acting(options, spec, common, {"delay": options.delay}),
        _trial(options, simulated=True, arm=True),
    ]


def robot(options: RobotOptions) -> list[Process]:
    """Everything for a robot whose driver, and whose cameras' drivers, run already. A person arms it."""
    spec = read_policy(options.checkpoint)[0]
    task = options.task or spec.task
    _require_robot(options.checkpoint, spec, task)
    staged = options.standin and has_cube(task)
    return [
        *arms(options, spec, task),
        *drivers(options, spec, task),
        *cameras(spec, task, options.calibrations, ours=bool(options.realsense) or options.standin),
        *objects(options, spec),
        *_acting(options, spec, {}, {"device": options.device}),
        *([Process("standin_stage", f"{NODES}.standin_stage", {"task": task})] if staged else []),
        _trial(options, simulated=staged, arm=staged and options.trials > 0, disarm=staged),
    ]


def recording(options: RecordOptions) -> list[Process]:
    """The recorder alone."""
    return recorder(options.record, read_policy(options.checkpoint)[0], options.raw)


def _require_robot(checkpoint: str, spec: PolicySpec, task: str) -> None:
    """Refuse before a node is started what no node could bring together."""
    if load_task(task).simulator == "toy":
        raise UserError(f"task '{task}' is a toy without a robot; `d2ppo evaluate` runs its policies, ROS does not")
    if load_task(task).environment != load_task(spec.task).environment:
        raise UserError(f"{checkpoint} is a policy for task '{spec.task}', not '{task}'; leave task= out")


def _acting(options: SystemOptions, spec: PolicySpec, common: dict[str, Any], policy: dict[str, Any]) -> list[Process]:
    """From safety, the last before the robot, to whoever watches; `policy` is the scenario's own of that node."""
    mode = ExecutorSettings(mode=options.executor, rate=options.rate, lockstep=common.get("lockstep", False))
    check(mode, spec.action, spec.horizon, spec.executed)
    policy = {"checkpoint": str(Path(options.checkpoint).absolute()), "seed": options.seed, "steps": options.steps,
              "threads": options.threads, "any_limits": options.any_limits} | policy  # fmt: skip
    watched = [camera.name for camera in spec.observation.cameras]
    acting: dict[str, float] = {}
    turned: dict[str, Any] = {}
    if isinstance(options, RobotOptions):
        turned = {"base_yaw": cell.simulated_bases(spec.action.arms)[1]} if options.standin else {}
        acting = cell.read_latencies(options.latency).chosen(action_latency="robot_action")
    return [
        Process("safety", f"{NODES}.safety", {"profile": options.profile, "cameras": watched} | turned | common),
        Process("executor", f"{NODES}.executor", {"mode": options.executor, "rate": options.rate} | acting | common),
        Process("policy", f"{NODES}.policy", policy | common),
        *recorder(options.record, spec),
    ]


def _trial(options: SystemOptions, **about: bool) -> Process:
    limit = {"max_duration": options.max_duration} if options.max_duration else {}
    return Process("trial", f"{NODES}.trial", about | limit)


def has_cube(task: str) -> bool:
    """Whether the stand-in's scene is this task's: one arm, a table, a cube."""
    return load_task(task).environment == "Lift"


def trials(options: SystemOptions) -> Process:
    """What asks for one trial after the other, and ends."""
    out = str(Path(options.run_dir).absolute() / "trials.json") if options.run_dir else ""
    if out and Path(out).exists():
        raise UserError(f"{out} holds the outcomes of an earlier run; choose another run_dir, or remove it")
    return Process("trials", f"{NODES}.run_trials", {
        "trials": options.trials, "first_seed": options.first_seed, "record": bool(options.record), "out": out,
    })  # fmt: skip


def _lateness(options: SimulationOptions) -> dict[str, float]:
    """What was measured on a robot, as the simulator's own faults."""
    found = cell.read_latencies(options.latency).chosen(image_latency="camera", state_latency="robot_observation")
    if found and options.lockstep:
        raise UserError(f"latency={options.latency} is of real time, where lockstep has none; leave one of them out")
    return found


def arms(options: RobotOptions, spec: PolicySpec, task: str) -> list[Process]:
    """The arms' driver, where their addresses are named; with stand-ins, those first, in the simulator's places."""
    number, objects = spec.action.arms, bool(options.object_file)
    about = {"task": task, "limits": options.profile, "objects": objects}
    if not options.standin:
        hosts = [host.strip() for host in options.hosts.split(",") if host.strip()]
        return [Process("arm", f"{NODES}.arm", about | {"hosts": hosts})] if hosts else []
    base, yaw = cell.simulated_bases(number)
    hosts = list(cell.STANDIN_HOSTS[:number])
    standin = {"host": ",".join(hosts), "base": base, "yaw": yaw, "table": cell.SIMULATED_TABLE, "cube": has_cube(task)}
    driver = {"hosts": hosts, "base_position": base, "base_yaw": yaw}
    return [Process("standin_arm", f"{NODES}.standin_arm", standin), Process("arm", f"{NODES}.arm", about | driver)]


def drivers(options: RobotOptions, spec: PolicySpec, task: str) -> list[Process]:
    """Of the policy's cameras, where they are named or stood in for."""
    seen = spec.observation.cameras
    if options.standin and seen:
        names = [camera.name for camera in seen]
        made = cell.software_cameras(seen)
        drawn = Process("standin_cameras", f"{NODES}.standin_cameras", {"task": task, "cameras": names})
        software = [Process(f"realsense_{n}" if n else "realsense", f"{NODES}.realsense", own)
                    for n, own in enumerate(made)]  # fmt: skip
        return [drawn, *software]
    if not options.realsense:
        return []
    late = cell.read_latencies(options.latency).chosen(latency="camera")
    return [Process("realsense", f"{NODES}.realsense", cell.real_cameras(options.realsense, seen) | late)]


def cameras(spec: PolicySpec, task: str, calibrations: str = "", ours: bool = False) -> list[Process]:
    """One process for each camera that the policy looks through; `ours`: our own driver sends reliably."""
    common = {"task": task} | ({"reliable": True} if ours else {})
    return [
        Process(f"camera_{camera.name}", f"{NODES}.camera",
                {"camera": camera.name} | common | cell.calibration_of(calibrations, camera.name))
        for camera in spec.observation.cameras
    ]  # fmt: skip


def objects(options: RobotOptions, spec: PolicySpec) -> list[Process]:
    """Who looks for AprilTags, where the object's are known."""
    if not options.object_file:
        return []
    files = {"object_file": options.object_file, "cameras_file": options.cameras_file}
    paths = {name: str(Path(path).absolute()) for name, path in files.items()}
    wanted = any(key.name == "object" for key in spec.observation.lowdim)  # else the pose alone is published
    return [Process("object_pose", f"{NODES}.object_pose", {"task": spec.task if wanted else "none"} | paths)]


def recorder(folder: str, spec: PolicySpec, raw: bool = False) -> list[Process]:
    """The recorder of what this policy sees and does, where records are wanted."""
    if not folder:
        return []
    seen = {"arms": spec.action.arms, "cameras": [camera.name for camera in spec.observation.cameras], "raw": raw}
    return [Process("recorder", f"{NODES}.recorder", {"folder": str(Path(folder).absolute())} | seen)]


def command(process: Process, files: list[Path], python: str = "") -> list[str]:
    """The whole command line of a process, in this or another interpreter."""
    return [python or sys.executable, *process.arguments(files)]


def main(arguments: Sequence[str]) -> int:
    """Print a system as JSON: each process's node, module and ROS arguments, and what its environment has on top."""
    try:
        scenario, *words = arguments or [""]
        made = system(scenario, parse(scenario, words))
    except UserError as error:
        print(f"d2ppo: {error}", file=sys.stderr)
        return 2
    nodes = [
        {"name": p.name, "module": p.module, "arguments": p.ros_arguments(made.files), "spare": made.spare(p.name)}
        for p in made.processes
    ]
    ours = {name: value for name, value in made.environment.items() if os.environ.get(name) != value}
    print(json.dumps({"nodes": nodes, "environment": ours}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
