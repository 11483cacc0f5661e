"""What can be brought up, and what can be chosen then: the options of `d2ppo up` and the arguments of the launch files.

Standard library only: ROS's launch reads this in ROS's own Python, where torch and pydantic may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from .parameters import build, default_of, parameter


@dataclass(frozen=True)
class CommonOptions:
    """What all have in common."""

    checkpoint: str = parameter("", "the policy's file (policy.safetensors)")
    params: str = parameter("", "a parameter file of your own, over ours")
    domain: int = parameter(-1, "ROS domain; -1: as the environment has it", low=-1, high=232)
    record: str = parameter("", "folder for records of the trials; empty: none are made")


@dataclass(frozen=True)
class SystemOptions(CommonOptions):
    """What simulator and robot have in common."""

    task: str = parameter("", "the task whose robot and cameras these are; empty: the checkpoint's")
    executor: str = parameter("receding", "how chunks are executed", choices=("receding", "async", "ensemble", "rtc"))
    rate: float = parameter(100.0, "of the executor's commands in real time", unit="Hz", low=20.0, high=1000.0)
    profile: str = parameter("sim", "limits that the safety node applies", choices=("sim", "robot"))
    any_limits: bool = parameter(False, "let a policy run under other limits than those it was trained under")
    seed: int = parameter(0, "names the policy's noise", low=0, high=2**31 - 1)
    steps: int = parameter(0, "DDIM steps instead of the contract's sampler; 0: the contract's", low=0, high=100)
    threads: int = parameter(1, "threads of the policy's network", low=1, high=64)
    max_duration: float = parameter(0.0, "of a trial; 0: the trial node's own", unit="s", low=0.0)
    trials: int = parameter(3, "trials to run one after the other; 0: none, it stays up until it is interrupted", low=0)
    first_seed: int = parameter(100000, "seed of the first trial; the others follow it", low=0, high=2**32 - 1)
    run_dir: str = parameter("", "folder for trials.json, the outcome of every trial")
    latency: str = parameter("", "file of `d2ppo calibrate latency`: simulated, or on a robot allowed for; empty: none")


@dataclass(frozen=True)
class SimulationOptions(SystemOptions):
    """Everything against the simulator."""

    lockstep: bool = parameter(False, "simulated time that waits for every node, instead of real time")
    delay: float = parameter(0.0, "added to the policy's inference time", unit="s", low=0.0, high=2.0)


@dataclass(frozen=True)
class RobotOptions(SystemOptions):
    """Everything but the drivers of robot and cameras, which run already unless they are named here."""

    profile: str = parameter("robot", "limits that the safety node applies", choices=("sim", "robot"))
    trials: int = parameter(0, "trials to run one after the other; 0: none, it stays up until it is interrupted", low=0)
    device: str = parameter("cpu", "where the policy's network runs: cpu, cuda or cuda:N")
    object_file: str = parameter("", "where AprilTags sit on the object; empty: no object pose is looked for")
    cameras_file: str = parameter("", "where the cameras are that look for tags")
    realsense: str = parameter("", "RealSense cameras to open, as NAME=SERIAL,NAME=SERIAL; empty: others drive them")
    calibrations: str = parameter("", "folder with a calibration NAME.json for each camera; empty: none are used")
    hosts: str = parameter("", "addresses of the arms' control boxes, with a comma between; empty: others drive them")
    standin: bool = parameter(False, "stand-ins instead of the hardware")


@dataclass(frozen=True)
class RecordOptions(CommonOptions):
    """The recorder alone, beside a system that runs."""

    record: str = parameter("runs/records", "folder for records of the trials")
    raw: bool = parameter(False, "record the cameras' raw pictures, too: many MB a second")


SCENARIOS: dict[str, type[CommonOptions]] = {"sim": SimulationOptions, "robot": RobotOptions, "record": RecordOptions}


def parse(scenario: str, arguments: Sequence[str]) -> CommonOptions:
    """key=value words as a scenario's options; numbers and true/false as such."""
    from d2ppo_core.errors import UserError, choose, did_you_mean

    if scenario not in SCENARIOS:
        raise UserError(f"there is nothing called '{scenario}' to bring up{choose(scenario, SCENARIOS)}")
    kinds = {field.name: type(default_of(field)) for field in fields(SCENARIOS[scenario])}
    values: dict[str, Any] = {}
    for word in arguments:
        name, sign, text = word.partition("=")
        if not sign or name not in kinds:
            near = did_you_mean(name, kinds) if sign else ""
            said = near or f"; give {', '.join(kinds)} as key=value"
            raise UserError(f"'{word}' is no option of `d2ppo up {scenario}`{said}")
        values[name] = _value(kinds[name], text)
    return build(SCENARIOS[scenario], values, f"up {scenario}")


def _value(kind: type, text: str) -> Any:
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text  # `build` says what it should be
