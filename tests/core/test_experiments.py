"""Every shipped configuration runs: two gradient steps of pre-training, and two iterations of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from d2ppo_core import cli, hydra_command, tasks
from d2ppo_core.conf.schema import Config
from d2ppo_core.data.robomimic import Episode, write_demonstrations
from support import ENV_ARGS, reach_episodes

CONF = Path(hydra_command.CONF)
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
TWO_STEPS = ("train.steps=2", "train.epochs=0", "train.batch=8", "threads=1")
TWO_ITERATIONS = (
    "algorithm.iterations=2", "rollout.envs=2", "rollout.chunks=2", "rollout.workers=1", "algorithm.batch=8",
    "algorithm.epochs=1", "algorithm.evaluate_every=0", "algorithm.critic_warmup=1", "threads=1",
)  # fmt: skip


def demonstrations_of(task: str, path: Path) -> Path:
    """Random numbers of the task's sizes in robomimic's layout."""
    config, rng = tasks.load_task(task), np.random.default_rng(0)
    if task == "reach":
        write_demonstrations(path, reach_episodes(4), ENV_ARGS, {})
        return path
    observation, action = tasks.observation_spec(config), tasks.action_spec(config)
    episodes = [
        Episode(
            obs={key.name: rng.normal(size=(12, key.size)) for key in observation.lowdim},
            actions=rng.uniform(-1, 1, (12, action.size)), rewards=np.zeros(12), dones=np.zeros(12, dtype=int),
        )
        for _ in range(4)
    ]  # fmt: skip
    args = {"env_name": config.environment, "env_version": "1.4.1", "type": 1, "env_kwargs": {"control_freq": 20}}
    write_demonstrations(path, episodes, args, {})
    return path


def task_of(experiment: str) -> str:
    """The task an experiment chooses, or the toy one where it leaves the choice."""
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    chosen = [line.split(":")[1].strip() for line in text.splitlines() if "override /task" in line]
    return chosen[0] if chosen else "reach"


@pytest.mark.sim
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_runs_two_steps_of_each_stage(experiment: str, tmp_path: Path) -> None:
    task = task_of(experiment)
    data = demonstrations_of(task, tmp_path / "demos.hdf5")
    common = (f"experiment={experiment}", f"task={task}")
    assert cli.main(["pretrain", *common, *TWO_STEPS, f"data={data}", f"run_dir={tmp_path / 'pretrain'}"]) == 0
    checkpoint = f"checkpoint={tmp_path / 'pretrain' / 'policy.safetensors'}"
    assert cli.main(["finetune", *common, *TWO_ITERATIONS, checkpoint, f"run_dir={tmp_path / 'finetune'}"]) == 0
    assert json.loads((tmp_path / "finetune" / "summary.json").read_text())["iterations"] == 2


@pytest.mark.parametrize("mode", ["off", "normalised", "paper", "release"])
@pytest.mark.parametrize("variant", ["infonce_l2", "infonce_cosine", "hinge", "covariance"])
def test_every_dispersive_setting_trains(mode: str, variant: str, reach_file: Path, tmp_path: Path) -> None:
    if (mode, variant) == ("paper", "covariance"):
        pytest.skip("the paper has no covariance variant; refusing it is tested with the bad input")
    for layer in ("early", "mid", "late", "all", "released_late"):
        run = tmp_path / layer
        options = (f"dispersive={mode}", f"dispersive.variant={variant}", f"dispersive.layer={layer}", f"run_dir={run}")
        assert cli.main(["pretrain", "task=reach", "experiment=debug", f"data={reach_file}", *TWO_STEPS, *options]) == 0


@pytest.mark.parametrize("options", [
    ("minibatch=chain",), ("truncation=leak",), ("truncation=terminal",), ("algorithm=dppo_ddim",),
    ("algorithm.bc_coef=0.1",), ("algorithm.bc_coef=0.1", "minibatch=chain"), ("algorithm.value_clip=0.2",),
    ("algorithm.advantage_clip_low=0.1", "algorithm.advantage_clip_high=0.9"), ("algorithm.max_grad_norm=1.0",),
    ("algorithm.sampling_std_final=0.05",), ("algorithm.finetuned_steps_every=1", "algorithm.finetuned_steps_drop=3"),
    ("minibatch=importance", "algorithm.importance_probability=discount"), ("algorithm.kl_per=dimension",),
    ("rollout.reset_each_iteration=false",), ("rollout.terminate_at_success=true",),
    ("algorithm.sampler.finetuned_steps=1",), ("algorithm.reward_scaling=false",), ("algorithm.evaluate_every=1",),
    ("algorithm.sampler.kind=ddim", "algorithm.sampler.steps=10", "algorithm.sampler.eta=0.5"),
])  # fmt: skip
def test_every_fine_tuning_option_runs(options: tuple[str, ...], reach_file: Path, tmp_path: Path) -> None:
    base = ("task=reach", "experiment=debug", "threads=1")
    assert cli.main(["pretrain", *base, f"data={reach_file}", *TWO_STEPS, f"run_dir={tmp_path / 'base'}"]) == 0
    checkpoint = f"checkpoint={tmp_path / 'base' / 'policy.safetensors'}"
    assert cli.main(["finetune", *base, checkpoint, f"run_dir={tmp_path / 'run'}", *options]) == 0
    policy = f"checkpoint={tmp_path / 'run' / 'policy.safetensors'}"
    assert cli.main(["evaluate", "experiment=debug", policy, "threads=1", f"run_dir={tmp_path / 'evaluated'}"]) == 0


@pytest.mark.parametrize("ema", ["step", "epoch"])
def test_both_averages_train(ema: str, reach_file: Path, tmp_path: Path) -> None:
    options = (f"ema={ema}", "train.epochs=3", f"run_dir={tmp_path / 'run'}")
    assert cli.main(["pretrain", "task=reach", "experiment=debug", f"data={reach_file}", *options]) == 0


def test_a_sweep_gives_each_job_a_folder(reach_file: Path, tmp_path: Path) -> None:
    """`-m` is Hydra's: one run for each combination, none on top of another."""
    options = (f"data={reach_file}", *TWO_STEPS, f"run_dir={tmp_path / 'sweep'}", "-m", "seed=0,1")
    assert cli.main(["pretrain", "task=reach", "experiment=debug", *options]) == 0
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "sweep").rglob("summary.json")]
    assert len(summaries) == 2
    assert len({s["policy"] for s in summaries}) == 2
    assert (tmp_path / "sweep" / "seed=0" / "summary.json").exists()
    assert not Path("multirun.yaml").exists()


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("demos", "pretrain", "finetune", "evaluate"):
        assert cli.main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "example:" in text
        missing = [line for line in text.splitlines() if line.startswith("  ") and line.endswith("  []")]
        assert not missing
    shown = hydra_command._option_names(Config())
    assert all(name.split(".")[0] in Config.__dataclass_fields__ for name in shown)
