"""Success rate over a fixed list of seeds, with its interval; everything about the policy is read from its file."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .action import under_limits
from .conf.schema import Config, EvaluationConfig, Success, TaskConfig
from .contract import PolicySpec, require_match
from .envs import EnvRequest, RawObservation, VectorEnv
from .errors import UserError
from .files import sha256, write_json
from .inference import Actor, load_policy
from .optim import setup_torch
from .progress import ProgressBar
from .randomise import randomisation
from .runs import RunFolder
from .scale.ray_env import environments
from .statistics import Interval, paired_difference, wilson
from .tasks import task_of_checkpoint
from .video import film


@dataclass(frozen=True)
class Episodes:
    """What happened on each seed, in the order of the seeds."""

    seeds: list[int]
    success: list[bool]
    reward: list[float]
    control_steps: list[int]

    @property
    def rate(self) -> Interval:
        """Success rate with Wilson's 95 % interval."""
        return wilson(sum(self.success), len(self.success))

    def summary(self) -> dict[str, Any]:
        """For summary.json and the log."""
        return {
            "success_rate": asdict(self.rate),
            "successes": sum(self.success),
            "episodes": len(self.seeds),
            "first_seed": self.seeds[0],
            "mean_reward": float(np.mean(self.reward)),
            "mean_control_steps": float(np.mean(self.control_steps)),
        }


def evaluate(
    actor: Actor, env: VectorEnv, seeds: list[int], success: Success = Success.any_step, bar: ProgressBar | None = None
) -> Episodes:
    """Run one episode for each seed, as many at once as `env` holds.

    A seed's result depends neither on the number of environments nor on the order, up to float rounding.
    """
    queue, records = list(enumerate(seeds)), {}
    count = min(env.num_envs, len(seeds))
    running = [queue.pop(0) for _ in range(count)]  # of each environment: (position, seed)
    chunk_index, reward, steps, succeeded = ([0] * count for _ in range(4))
    raw, active = env.reset(range(count), [seed for _, seed in running]), list(range(count))
    while active:
        chunks = actor.act(_rows(raw, active), [running[e][1] for e in active], [chunk_index[e] for e in active])
        step = env.step(active, chunks)
        _write(raw, active, step.observation)
        full = step.reward >= chunks.shape[1]  # every control step of the chunk was rewarded
        ended = []
        for row, e in enumerate(active):
            chunk_index[e] += 1
            reward[e] += float(step.reward[row])
            steps[e] += int(step.control_steps[row])
            succeeded[e] |= int(full[row] if success is Success.full_chunk else step.success[row])
            if step.terminated[row] or step.truncated[row]:
                ended.append(e)
                records[running[e][0]] = (bool(succeeded[e]), reward[e], steps[e])
        again = ended[: len(queue)]
        for e in ended:
            chunk_index[e], reward[e], steps[e], succeeded[e] = 0, 0, 0, 0
        for e in again:
            running[e] = queue.pop(0)
        if again:
            _write(raw, again, env.reset(again, [running[e][1] for e in again]))
        active = [e for e in active if e not in ended or e in again]
        if bar is not None and ended:
            bar.advance(len(ended), f"success {sum(r[0] for r in records.values())}/{len(records)}")
    done = [records[n] for n in range(len(seeds))]
    return Episodes(list(seeds), [d[0] for d in done], [d[1] for d in done], [d[2] for d in done])


def _rows(raw: RawObservation, rows: list[int]) -> RawObservation:
    return {key: value[rows] for key, value in raw.items()}


def _write(raw: RawObservation, rows: list[int], new: RawObservation) -> None:
    for key, value in new.items():
        raw[key][rows] = value


def evaluation_seeds(config: EvaluationConfig) -> list[int]:
    """The fixed list: first_seed, first_seed + 1, ..."""
    if config.episodes < 1:
        raise UserError(f"evaluation.episodes is {config.episodes}; at least one episode is needed")
    if config.envs < 1:
        raise UserError(f"evaluation.envs is {config.envs}; at least one environment is needed")
    if config.first_seed < 0 or config.first_seed + config.episodes >= 2**32:
        raise UserError("evaluation.first_seed must be at least 0 and stay below 2**32: training draws from above")
    return list(range(config.first_seed, config.first_seed + config.episodes))


def evaluation_env(whole: Config, task: TaskConfig, spec: PolicySpec, envs: int) -> VectorEnv:
    """The task's environments, compared with the policy's contract before anything moves."""
    config = whole.evaluation
    request = EnvRequest(
        task=task.environment,
        num_envs=envs,
        history=spec.observation.history,
        workers=config.workers,
        max_episode_steps=config.max_episode_steps or task.max_episode_steps,
        terminate_at_success=config.success is Success.any_step,
        cameras=spec.observation.cameras,
        randomise=randomisation(whole.randomise, config.randomise),
        limits=spec.action.limits,
    )
    env = environments(whole.cluster, task.simulator, request)
    try:
        require_match(spec, env.observation, env.action, "simulator")
    except UserError:
        env.close()
        raise
    return env


def _limited(spec: PolicySpec, limits: str, path: str) -> PolicySpec:
    """The contract under the limits asked for, with a line where they are not the checkpoint's own."""
    changed = under_limits(spec, limits)
    if changed != spec:
        print(f"warning: {path} is of limits={spec.action.limits} and acts under limits={limits}", file=sys.stderr)
    return changed


def main(config: Config) -> None:
    """`d2ppo evaluate`: one policy, or two on the same seeds with the interval of their paired difference."""
    device, options = setup_torch(config), config.evaluation
    if not config.checkpoint:
        raise UserError(
            "no policy is given; add checkpoint=FILE (a policy.safetensors of `d2ppo pretrain` or `finetune`)"
        )
    paths = {"policy": config.checkpoint, **({"baseline": config.baseline} if config.baseline else {})}
    policies = {name: load_policy(path, device, options.weights, options.steps) for name, path in paths.items()}
    for name, policy in policies.items():
        policy.spec = _limited(policy.spec, config.limits, paths[name])
    seeds = evaluation_seeds(options)
    task = task_of_checkpoint(config, policies["policy"].spec, config.checkpoint)
    if "baseline" in policies and policies["baseline"].spec.task != task.name:
        raise UserError(
            f"{config.baseline} is a policy for task '{policies['baseline'].spec.task}', {config.checkpoint} one for "
            f"'{task.name}'; give a baseline of the same task"
        )
    if len({policy.spec.action.limits for policy in policies.values()}) > 1:
        raise UserError("the policy and its baseline act under different limits; add limits=sim or limits=robot")
    results: dict[str, Episodes] = {}
    with RunFolder(config, "evaluate") as run:
        env = evaluation_env(config, task, policies["policy"].spec, min(options.envs, len(seeds)))
        try:
            for name, policy in policies.items():
                require_match(policy.spec, env.observation, env.action, "simulator")
                actor = Actor(policy, config.seed, options.stochastic)
                with ProgressBar(f"evaluating {name}", len(seeds)) as bar:
                    results[name] = evaluate(actor, env, seeds, options.success, bar)
                if options.video:
                    film(actor, env, seeds[: options.video], run.path / "videos", name)
        finally:
            env.close()
        _report(run, config, paths, results, env.action.limits)


def _report(
    run: RunFolder, config: Config, paths: dict[str, str], results: dict[str, Episodes], limits: str
) -> None:
    """evaluation.json with every seed's outcome, one line of metrics, and the summary."""
    write_json(
        run.path / "evaluation.json",
        {
            name: {"checkpoint": str(Path(paths[name]).absolute()), "digest": sha256(paths[name]), **asdict(r)}
            for name, r in results.items()
        },
    )
    summary: dict[str, Any] = {name: r.summary() for name, r in results.items()}
    for name, result in results.items():
        print(
            f"{name}: success {result.rate} ({sum(result.success)}/{len(result.seeds)} episodes, "
            f"seeds from {result.seeds[0]})"
        )
    if "baseline" in results:
        difference = paired_difference(results["baseline"].success, results["policy"].success)
        summary["difference"] = asdict(difference)
        print(f"difference: {difference} (policy minus baseline, paired by seed)")
    run.log(0, {f"evaluation/{name}_success": r.rate.value for name, r in results.items()})
    run.finish(
        {
            **summary,
            "protocol": {
                "success": config.evaluation.success.value,
                "stochastic": config.evaluation.stochastic,
                "seed": config.seed,
                "randomise": randomisation(config.randomise, config.evaluation.randomise),
                "limits": limits,
                "max_episode_steps": config.evaluation.max_episode_steps or config.task.max_episode_steps,
            },
        }
    )
