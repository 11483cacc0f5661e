"""The same checkpoint through all nodes, in real processes, and through `d2ppo evaluate`: bit for bit the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2ppo_core.checkpoint import save_policy
from d2ppo_core.contract import PolicySpec, Provenance, SimulatorSpec
from d2ppo_core.envs import EnvRequest, make_env
from d2ppo_core.evaluate import evaluate
from d2ppo_core.inference import Actor, load_policy
from d2ppo_core.network_specs import MLPSpec, SamplerSpec, VisionSpec
from d2ppo_core.policies.build import build_policy
from d2ppo_core.tasks import action_spec, load_task, observation_spec
from d2ppo_ros.recording.reader import Trial
from d2ppo_ros.records import Chunk, Command, Kind, SafetyReport
from support import d2ppo

pytestmark = [pytest.mark.ros, pytest.mark.sim, pytest.mark.graph]
pytest.importorskip("d2ppo_interfaces")

FIRST_SEED = 100_000


def restless_policy(path: Path, task: str, history: int = 1) -> Path:
    """Random weights, normalised to the task's ranges, so that the arm moves about and every chunk differs."""
    config = load_task(task)
    observation = observation_spec(config).model_copy(update={"history": history})
    simulator = SimulatorSpec(name="robosuite", version="1.4.1", environment=config.environment, controller="OSC_POSE")
    spec = PolicySpec(
        task=task, observation=observation, action=action_spec(config), horizon=4, executed=4,
        network=MLPSpec(
            hidden=(32, 32, 32), time_size=8,
            vision=VisionSpec(width=16, heads=2, features=8) if observation.cameras else None,
        ),
        sampler=SamplerSpec(train_steps=10, steps=10),
        provenance=Provenance(
            stage="pretrain", dataset="none", dataset_digest="0" * 64, code_version="0", seed=0, simulator=simulator
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    policy = build_policy(spec)
    save_policy(path, spec, {"raw": policy.network, "ema": policy.network, "normalizer": policy.normalizer})
    return path


@dataclass
class Seen:
    """What happened in one episode."""

    digests: list[str]  # of the tensors that reached the network, chunk by chunk
    actions: np.ndarray  # (steps, Da) as executed
    success: bool


class WatchedActor(Actor):
    """An actor that notes what goes into its network, and what comes out."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(load_policy(checkpoint), seed=0)
        self.digests: list[str] = []
        self.chunks: list[np.ndarray] = []
        self.watch = lambda observation: self.digests.append(observation.digest())

    def act(self, *arguments: Any) -> np.ndarray:
        self.chunks.append(super().act(*arguments))
        return self.chunks[-1]


def evaluated(checkpoint: Path, seeds: list[int], steps: int) -> list[Seen]:
    """As `d2ppo evaluate evaluation.envs=1 threads=1` runs it."""
    torch.set_num_threads(1)
    found = []
    spec = load_policy(checkpoint).spec
    request = EnvRequest(load_task(spec.task).environment, 1, steps, spec.observation.history, workers=1,
                         cameras=spec.observation.cameras)  # fmt: skip
    env = make_env("native", request)
    try:
        for seed in seeds:
            actor = WatchedActor(checkpoint)
            episode = evaluate(actor, env, [seed])
            actions = np.concatenate([chunk[0] for chunk in actor.chunks])[: episode.control_steps[0]]
            found.append(Seen(actor.digests, actions, episode.success[0]))
    finally:
        env.close()
    return found


def through_ros(checkpoint: Path, folder: Path, seeds: list[int], steps: int, *options: str) -> list[Seen]:
    """In lockstep through camera, policy, executor, safety and simulator, each in its own process, as recorded."""
    params = folder / "own.yaml"
    params.parent.mkdir(parents=True, exist_ok=True)
    params.write_text(f"/**/sim:\n  ros__parameters:\n    max_episode_steps: {steps}\n")
    done = d2ppo(
        "up", "sim", f"checkpoint={checkpoint}", "lockstep=true", f"trials={len(seeds)}", f"first_seed={seeds[0]}",
        f"run_dir={folder}", f"record={folder / 'records'}", f"params={params}", *options,
        check=False, OMP_NUM_THREADS="2",  # the policy's node must keep to one by itself
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((folder / "trials.json").read_text())["trials"]
    assert [row["seed"] for row in rows] == seeds, done.stdout
    return [recorded(Trial(row["record"]), row["success"]) for row in rows]


def recorded(trial: Trial, success: bool) -> Seen:
    chunks = trial.records(Chunk, "policy/chunk")
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    applied = trial.records(Command, "command/applied")
    sent = {command.sequence: command for command in trial.records(Command, "command/sent")}
    requested = {command.sequence: command for command in trial.records(Command, "command/requested")}
    assert all(command.kind is Kind.DELTA for command in applied)
    for command in applied:  # nothing was changed on the way
        assert np.array_equal(command.action, sent[command.sequence].action)
        assert np.array_equal(command.action, requested[command.sequence].action)
    reports = trial.records(SafetyReport, "safety/state")
    assert reports
    assert not any(report.changed or report.refused for report in reports), "safety intervened"
    return Seen([chunk.seen for chunk in chunks], np.array([command.action for command in applied]), success)


def compare(ros: list[Seen], reference: list[Seen]) -> None:
    for one, other in zip(ros, reference, strict=True):
        assert one.digests[: len(other.digests)] == other.digests
        assert len(one.digests) - len(other.digests) <= 1  # the executor asks once more before it hears that it is over
        assert one.actions.tobytes() == other.actions.tobytes()
        assert one.success == other.success


@pytest.mark.parametrize(("task", "history"), [("lift", 2), ("lift_image", 1)])
def test_two_trials_are_the_same(task: str, history: int, tmp_path: Path) -> None:
    checkpoint = restless_policy(tmp_path / "policy.safetensors", task, history)
    seeds = [FIRST_SEED, FIRST_SEED + 1]
    ros, reference = through_ros(checkpoint, tmp_path / "run", seeds, 18), evaluated(checkpoint, seeds, 18)
    compare(ros, reference)
    assert len(reference[0].digests) == 5  # 18 steps, 4 at a time: the last chunk is cut
    assert len(reference[0].actions) == 18
    assert len(set(reference[0].digests + reference[1].digests)) == 10  # nothing stood still
    assert np.abs(reference[0].actions[:, :6]).max() > 0.1


def trained(task: str, folder: Path) -> Path:
    """A policy of the scripted expert's noisy demonstrations: some episodes succeed, some do not."""
    image = task == "lift_image"
    data, run = f"demos.out={folder / 'demos.hdf5'}", f"run_dir={folder / 'policy'}"
    recipe = "experiment=lift_image_cpu" if image else "experiment=demo"
    d2ppo("demos", recipe, data, f"demos.episodes={12 if image else 40}", f"run_dir={folder / 'demos'}")
    d2ppo("pretrain", recipe, f"data={folder / 'demos.hdf5'}", run, f"train.steps={150 if image else 2500}")
    return folder / "policy" / "policy.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lift", "lift_image"])
def test_twenty_trials_of_a_trained_policy_are_the_same(task: str, tmp_path: Path) -> None:
    checkpoint, seeds = trained(task, tmp_path), list(range(FIRST_SEED, FIRST_SEED + 20))
    reference = evaluated(checkpoint, seeds, 100)
    compare(through_ros(checkpoint, tmp_path / "run", seeds, 100), reference)
    successes = sum(episode.success for episode in reference)
    print(f"{task}: {successes}/20 succeed, through ROS and in evaluate")
    assert task == "lift_image" or 0 < successes < 20
