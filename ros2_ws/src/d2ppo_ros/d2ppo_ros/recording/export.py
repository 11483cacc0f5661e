"""Recorded trials -> demonstrations in robomimic's layout, so that `d2ppo pretrain data=FILE` learns from them.

For each control step: what the policy was shown, and the action that the robot applied. Raw actions are taken as they
were applied. Absolute targets (executor modes async, ensemble, rtc) are turned back into the delta that asks for the
same: from the measured pose to the goal at which the trained controller moves as commanded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.contract import LowDim, ObservationSpec, PolicySpec
from d2ppo_core.data.robomimic import RENDERING, Episode, write_demonstrations
from d2ppo_core.errors import UserError
from d2ppo_core.response import osc_goal, osc_goal_rotation

from ..records import SECOND, ArmState, ChunkRequest, Command, Kind, Target
from ..records import Episode as EpisodeState
from .observations import MAX_AGE, Observations, contract_of
from .reader import Trial


@dataclass
class Exported:
    """What became of the trials."""

    episodes: int = 0
    steps: int = 0
    left_out: dict[str, str] = field(default_factory=dict)  # by folder: why
    clipped: int = 0  # control steps whose target was further away than an action reaches


def succeeded(trial: Trial) -> bool:
    """What the trial's outcome says; where it says nothing, whether the simulator or the operator saw a success."""
    stated = trial.about.get("outcome", {}).get("success")
    return any(e.success for e in trial.records(EpisodeState, "episode")) if stated is None else bool(stated)


def export_robomimic(
    trials: Sequence[Trial], path: Path, contract: PolicySpec | None = None, failures: bool = False,
    max_age: int = MAX_AGE,
) -> Exported:  # fmt: skip
    """Write the successful trials (with `failures` all) into one HDF5 file; `contract`: instead of the recorded one."""
    spec, report = common_contract(trials, contract), Exported()
    attrs = {RENDERING: json.dumps([camera.model_dump() for camera in spec.observation.cameras])}
    episodes = list(read_episodes(trials, spec, report, failures, max_age))
    if not episodes:
        raise UserError(f"no trial is left to export ({_reasons(report)}); give successful ones, or --all")
    write_demonstrations(path, episodes, env_args(spec), attrs if spec.observation.cameras else {})
    return report


def _reasons(report: Exported) -> str:
    return "; ".join(f"{name}: {why}" for name, why in report.left_out.items())


def common_contract(trials: Sequence[Trial], contract: PolicySpec | None) -> PolicySpec:
    """The contract that all of the trials were run under, as far as data are concerned."""
    specs = [contract or contract_of(trial) for trial in trials]
    if not specs:
        raise UserError("no trial is given; give the folders of recorded trials")
    for trial, spec in zip(trials, specs, strict=True):
        if (spec.task, spec.action) != (specs[0].task, specs[0].action):
            raise UserError(
                f"{trial.folder} was run on task '{spec.task}', {trials[0].folder} on '{specs[0].task}', or under "
                "another meaning of actions; export them into files of their own"
            )
    return specs[0]


def env_args(spec: PolicySpec) -> dict[str, Any]:
    """robomimic's description of the environment, as far as the contract says it."""
    simulator, action = spec.provenance.simulator, spec.action
    kwargs: dict[str, Any] = {"control_freq": action.control_hz, "simulator": simulator.name, "recorded_on": "ros2"}
    if action.meaning == "osc_pose_delta":
        reach = [action.position_scale] * 3 + [action.rotation_scale] * 3
        words = simulator.controller.split()  # "OSC_POSE kp 150 damping 1"
        gains = {name: _number(words[words.index(name) + 1]) for name in ("kp", "damping") if name in words}
        kwargs["controller_configs"] = {
            "type": "OSC_POSE", "control_delta": True, "output_max": reach, "output_min": [-r for r in reach], **gains
        }  # fmt: skip
    return {"env_name": simulator.environment, "env_version": simulator.version, "type": 1, "env_kwargs": kwargs}


def _number(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() else value


def read_episodes(
    trials: Sequence[Trial], spec: PolicySpec, report: Exported, failures: bool, max_age: int
) -> Iterator[Episode]:
    """The trials as episodes, one after the other; what is left out is told in `report`."""
    for trial in trials:
        if not failures and not succeeded(trial):
            report.left_out[str(trial.folder)] = "it did not succeed"
            continue
        episode = read_episode(trial, spec, report, max_age)
        if isinstance(episode, str):
            report.left_out[str(trial.folder)] = episode
            continue
        report.episodes, report.steps = report.episodes + 1, report.steps + len(episode.actions)
        yield episode


def read_episode(trial: Trial, spec: PolicySpec, report: Exported, max_age: int) -> Episode | str:
    """One trial, or why it is none: nothing was applied, or what the policy sees is not there at every step."""
    steps = applied_actions(trial, spec, report)
    if not steps:
        return "the robot applied no action"
    step, offered = SECOND // spec.action.control_hz, _offered(trial, spec)
    observations = Observations(trial, offered, step, max_age)
    start = min([r.start for r in trial.records(ChunkRequest, "policy/request")], default=steps[0][0])
    rows = []
    for stamp, _ in steps:
        found, lacking = observations.at(stamp, start)
        if lacking:
            return f"{(stamp - start) / SECOND:.3f} s after its begin an action was applied, but there is {lacking}"
        rows.append({name: value[0, -1] for name, value in found[0].items()})  # [1, 1, ...] -> [...]
    times = [stamp for stamp, _ in steps]
    won = [e.stamp for e in trial.records(EpisodeState, "episode") if e.success]
    rewards = np.array([any(t < w <= t + step for w in won) for t in times], dtype=np.float64)
    dones = rewards.astype(np.int64)
    dones[-1] = 1
    return Episode(
        obs={name: np.stack([row[name] for row in rows]) for name in rows[0]},  # each (T, ...)
        actions=np.stack([action for _, action in steps]),
        rewards=rewards,
        dones=dones,
        attrs={"trial": str(trial.metadata.get("trial", trial.folder.name)), "seed": trial.metadata.get("seed", -1)},
    )


def _offered(trial: Trial, spec: PolicySpec) -> ObservationSpec:
    """The contract's keys and cameras, and every other key that the robot's states hold; one time step each."""
    known = {key.name for key in spec.observation.lowdim}
    first = next(iter(trial.messages("robot/state")), None)
    if first is None:
        raise UserError(f"{trial.folder} holds no states of the robot; it cannot be exported")
    more = [LowDim(name=n, size=len(v)) for n, v in first.value.values.items() if n not in known and len(v)]
    return spec.observation.model_copy(update={"lowdim": (*spec.observation.lowdim, *more), "history": 1})


def applied_actions(trial: Trial, spec: PolicySpec, report: Exported) -> list[tuple[int, np.ndarray]]:
    """(time, raw action (Da,)) of every control step at which the robot was given something new."""
    commands = sorted(trial.records(Command, "command/applied"), key=lambda command: command.stamp)
    deltas = [(c.stamp, c.action) for c in commands if c.kind is Kind.DELTA]
    poses = [c for c in commands if c.kind is Kind.POSE]
    if deltas and poses:
        raise UserError(f"{trial.folder} mixes raw actions with absolute targets; it cannot be exported as one episode")
    wrong = {len(action) for _, action in deltas} - {spec.action.size}
    if wrong:
        raise UserError(f"{trial.folder} holds actions of {wrong.pop()} numbers, the contract says {spec.action.size}")
    return deltas or _deltas_of_poses(trial, poses, spec, report)


def _deltas_of_poses(
    trial: Trial, poses: list[Command], spec: PolicySpec, report: Exported
) -> list[tuple[int, np.ndarray]]:
    """One action for each control step, from the first target newer than its time."""
    if not poses:
        return []
    step, arms = SECOND // spec.action.control_hz, range(spec.action.arms)
    measured = [trial.records(ArmState, f"robot/arm{arm}") for arm in arms]
    if not all(measured):
        raise UserError(
            f"{trial.folder} holds absolute targets, but no measured poses (robot/arm0 …) from which a delta could be "
            "told; record them, or run the executor in mode receding"
        )
    stamps, actions = np.array([pose.stamp for pose in poses]), []
    seen = [np.array([state.stamp for state in states]) for states in measured]
    for time in range(int(stamps[0]), int(stamps[-1]) + 1, step):
        pose = poses[int(np.searchsorted(stamps, time))]
        if pose.stamp - time >= step:
            continue  # the robot was held
        arm_states = [measured[arm][int(np.abs(seen[arm] - time).argmin())] for arm in arms]
        action = np.concatenate([delta_of(pose.targets[arm], arm_states[arm], spec) for arm in arms])
        report.clipped += bool(np.abs(action).max() > 1)
        actions.append((time, np.clip(action, -1, 1)))
    return actions


def delta_of(target: Target, arm: ArmState, spec: PolicySpec) -> np.ndarray:
    """(7,) raw action, not clipped, with which the trained controller goes from the measured pose as `target` says."""
    velocity, acceleration = target.velocity, target.acceleration
    rotation = Rotation.from_quat(target.quaternion).as_matrix()
    goal = osc_goal(target.position, velocity[:3], acceleration[:3])
    turn = osc_goal_rotation(rotation, velocity[3:], acceleration[3:]) @ arm.rotation.T
    move = (goal - arm.position) / spec.action.position_scale
    return np.concatenate([move, Rotation.from_matrix(turn).as_rotvec() / spec.action.rotation_scale, [target.gripper]])
