"""Which node processes make up a running system, and with which parameters: stated once, for `d2ppo up` and for the
launch files alike.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2ppo_core.checkpoint import read_policy
from d2ppo_core.contract import PolicySpec
from d2ppo_core.errors import UserError

from .parameters import parameter

BRINGUP = "d2ppo_bringup"  # the ament package of launch files and parameter files
PROFILE = "shared_memory.xml"  # of Fast DDS, for images
NODES = "d2ppo_ros.nodes"


@dataclass(frozen=True)
class Process:
    """One node in its own process."""

    name: str  # of the node
    module: str  # run with python -m
    parameters: dict[str, Any] = field(default_factory=dict)  # over those of the parameter file

    def arguments(self, files: list[Path]) -> list[str]:
        """What follows `python`."""
        given = [part for path in files for part in ("--params-file", str(path))]
        own = [part for name, value in self.parameters.items() for part in ("-p", f"{name}:={yaml_of(value)}")]
        return ["-m", self.module, "--ros-args", "-r", f"__node:={self.name}", *given, *own]


@dataclass(frozen=True)
class SimulationOptions:
    """What can be chosen when everything runs against the simulator. The names are the launch arguments."""

    checkpoint: str = parameter("", "the policy's file (policy.safetensors)")
    task: str = parameter("", "which task is simulated; empty: the checkpoint's")
    executor: str = parameter("receding", "how chunks are executed", choices=("receding", "async", "ensemble", "rtc"))
    lockstep: bool = parameter(False, "simulated time that waits for every node, instead of real time")
    rate: float = parameter(100.0, "of the executor's commands in real time", unit="Hz", low=20.0, high=1000.0)
    profile: str = parameter("sim", "limits that the safety node applies", choices=("sim", "robot"))
    any_limits: bool = parameter(False, "let a policy run under other limits than those it was trained under")
    delay: float = parameter(0.0, "added to the policy's inference time", unit="s", low=0.0, high=2.0)
    record: str = parameter("", "folder for records of the trials; empty: none are made")
    seed: int = parameter(0, "names the policy's noise", low=0, high=2**31 - 1)
    steps: int = parameter(0, "DDIM steps instead of the contract's sampler; 0: the contract's", low=0, high=100)
    threads: int = parameter(1, "threads of the policy's network", low=1, high=64)
    max_duration: float = parameter(0.0, "of a trial; 0: the task's number of control steps", unit="s", low=0.0)
    params: str = parameter("", "a parameter file of your own, over ours")


def yaml_of(value: Any) -> str:
    """A parameter's value as ROS's command line reads it: as YAML, so that an empty text stays a text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_of, value))}]"
    return f"'{value}'" if isinstance(value, str) else str(value)


def share() -> Path:
    """Where launch and parameter files lie: in ROS's index, beside an installed package, or in the checkout."""
    ament = [Path(prefix) / "share" / BRINGUP for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)]
    checkout = Path(__file__).resolve().parents[4] / "launch"
    for folder in (*ament, checkout, Path(sysconfig.get_paths()["data"]) / "share" / BRINGUP):
        if (folder / "params").is_dir():
            return folder
    raise UserError(f"the parameter files of {BRINGUP} are not installed; build launch/ with colcon, or reinstall d2ppo")


def parameter_files(scenario: str, own: str) -> list[Path]:
    """The scenario's file, and the user's over it."""
    if own and not Path(own).is_file():
        raise UserError(f"params={own}: there is no such file")
    return [share() / "params" / f"{scenario}.yaml", *([Path(own).absolute()] if own else [])]


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For the nodes' processes: images by shared memory, nothing beyond this machine, idle threads that sleep."""
    profile = str(share() / "params" / PROFILE)
    ours = {
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile, "FASTDDS_DEFAULT_PROFILES_FILE": profile,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    if base.get("ROS_DISTRO") == "humble":
        ours["ROS_LOCALHOST_ONLY"] = "1"
    return {**ours, **base}


def simulation(options: SimulationOptions) -> list[Process]:
    """Everything against the simulator, in the order in which it is started; it is stopped the other way round."""
    if not options.checkpoint:
        raise UserError("no policy is given; add checkpoint=FILE (a policy.safetensors of `d2ppo pretrain` or `finetune`)")
    spec = read_policy(options.checkpoint)[0]
    task, common = options.task or spec.task, {"lockstep": options.lockstep}
    policy = {"checkpoint": str(Path(options.checkpoint).absolute()), "seed": options.seed, "steps": options.steps,
              "threads": options.threads, "delay": options.delay, "any_limits": options.any_limits}  # fmt: skip
    watched = [camera.name for camera in spec.observation.cameras]
    executor = {"mode": options.executor, "rate": options.rate}
    trial = {"max_duration": options.max_duration} if options.max_duration else {}
    return [
        Process("sim", f"{NODES}.sim", {"task": task, "limits": options.profile} | common),
        *cameras(spec, task),
        Process("safety", f"{NODES}.safety", {"profile": options.profile, "cameras": watched} | common),
        Process("executor", f"{NODES}.executor", executor | common),
        Process("policy", f"{NODES}.policy", policy | common),
        *recorder(options.record, watched, spec.action.arms),
        Process("trial", f"{NODES}.trial", {"arm": True} | trial),
    ]


def cameras(spec: PolicySpec, task: str) -> list[Process]:
    """One process for each camera that the policy looks through."""
    return [
        Process(f"camera_{camera.name}", f"{NODES}.camera", {"task": task, "camera": camera.name})
        for camera in spec.observation.cameras
    ]


def recorder(folder: str, cameras: list[str], arms: int) -> list[Process]:
    """The recorder, where records are wanted."""
    settings = {"folder": str(Path(folder).absolute()), "cameras": cameras, "arms": arms}
    return [Process("recorder", f"{NODES}.recorder", settings)] if folder else []


def command(process: Process, files: list[Path], python: str = "") -> list[str]:
    """The whole command line of a process, in this or another interpreter."""
    return [python or sys.executable, *process.arguments(files)]
