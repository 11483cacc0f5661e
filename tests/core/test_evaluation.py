"""Evaluation: the same for any number of environments, the same twice, everything read from the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from d2ppo_core import cli
from d2ppo_core.checkpoint import read_policy, save_policy
from d2ppo_core.conf.schema import Success
from d2ppo_core.contract import Camera, LowDim, require_match
from d2ppo_core.envs import EnvRequest, Step, VectorEnv, make_env
from d2ppo_core.errors import UserError
from d2ppo_core.evaluate import Episodes, evaluate
from d2ppo_core.inference import Actor, load_policy

SEEDS = list(range(1_000_000, 1_000_060))


def toy(envs: int) -> VectorEnv:
    return make_env("toy", EnvRequest("Reach", envs, max_episode_steps=40, workers=1))


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that solves the toy task now and then, trained in seconds on the scripted expert's demonstrations."""
    folder = tmp_path_factory.mktemp("evaluation")
    demos = ("demos.episodes=30", "demos.position_noise=0.3", f"demos.out={folder / 'reach.hdf5'}", "demos.workers=1")
    assert cli.main(["demos", "task=reach", *demos, f"run_dir={folder / 'demos'}"]) == 0
    options = (
        "policy=diffusion_mlp_small",
        "train.steps=400",
        "train.optimiser.lr=1e-3",
        "threads=1",
        "dispersive=off",
    )
    data, run = f"data={folder / 'reach.hdf5'}", f"run_dir={folder / 'run'}"
    assert cli.main(["pretrain", "task=reach", data, run, *options]) == 0
    return folder / "run" / "policy.safetensors"


def run(policy_file: Path, envs: int, seeds: list[int] = SEEDS) -> Episodes:
    env = toy(envs)
    try:
        return evaluate(Actor(load_policy(policy_file), seed=0), env, seeds)
    finally:
        env.close()


def test_one_environment_or_fifty_or_twice(policy_file: Path) -> None:
    torch.set_num_threads(1)
    one, fifty, again = (run(policy_file, envs) for envs in (1, 50, 50))
    assert 0 < sum(one.success) < len(SEEDS), "a policy that always or never succeeds could not tell a difference"
    assert fifty == again
    assert one.success == fifty.success
    assert one.control_steps == fifty.control_steps
    np.testing.assert_allclose(one.reward, fifty.reward, rtol=1e-6)


def test_a_seed_does_not_depend_on_its_neighbours(policy_file: Path) -> None:
    torch.set_num_threads(1)
    whole, part = run(policy_file, 7), run(policy_file, 7, SEEDS[20:31][::-1])
    assert part.success == whole.success[20:31][::-1]
    assert part.control_steps == whole.control_steps[20:31][::-1]


def test_a_chunk_does_not_depend_on_the_batch_it_is_computed_in(policy_file: Path) -> None:
    actor, rng = Actor(load_policy(policy_file), seed=3, explore=True), np.random.default_rng(0)
    raw = {"position": rng.normal(size=(9, 1, 2)), "goal": rng.normal(size=(9, 1, 2))}
    together = actor.act(raw, list(range(9)), [4] * 9)
    alone = [actor.act({k: v[i : i + 1] for k, v in raw.items()}, [i], [4])[0] for i in range(9)]
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert not np.allclose(together[0], actor.act(raw, [1, *range(1, 9)], [4] * 9)[0], atol=1e-3)  # other noise


class Table:
    """A VectorEnv whose episodes are written down: by seed, the (reward, success, end) of each chunk of 4 steps."""

    num_envs = 2

    def __init__(self, episodes: dict[int, list[tuple[float, bool, str]]]) -> None:
        self.episodes = episodes
        self.playing: dict[int, list[tuple[float, bool, str]]] = {}

    def reset(self, envs: list[int], seeds: list[int]) -> dict[str, np.ndarray]:
        self.playing.update({e: list(self.episodes[seed]) for e, seed in zip(envs, seeds, strict=True)})
        return {"position": np.zeros((len(envs), 1, 2))}

    def step(self, envs: list[int], chunks: np.ndarray) -> Step:
        rewards, success, end = (
            np.array(column) for column in zip(*(self.playing[e].pop(0) for e in envs), strict=True)
        )
        taken = np.full(len(envs), 4)
        return Step({"position": np.zeros((len(envs), 1, 2))}, rewards, end == "done", end == "late", success, taken)


class Still:
    """An actor that does nothing."""

    def act(self, raw: dict[str, np.ndarray], seeds: list[int], chunks: list[int]) -> np.ndarray:
        return np.zeros((len(seeds), 4, 2))


def test_both_rules_of_success_and_the_books_of_an_episode() -> None:
    episodes = {
        10: [(0.0, False, ""), (4.0, True, ""), (0.0, False, "late")],  # a whole chunk of success, lost again
        11: [(3.0, True, ""), (3.0, True, "late")],  # never four steps in a row within one chunk
        12: [(0.0, False, "late")],
        13: [(0.0, False, ""), (1.0, True, "done")],
    }
    seeds = [12, 10, 13, 11]
    any_step = evaluate(Still(), Table(episodes), seeds)  # type: ignore[arg-type]
    assert any_step == Episodes(seeds, [False, True, True, True], [0.0, 4.0, 1.0, 6.0], [4, 12, 8, 8])
    full = evaluate(Still(), Table(episodes), seeds, Success.full_chunk)  # type: ignore[arg-type]
    assert full.success == [False, True, False, False]


def test_the_contract_is_checked_before_anything_moves(policy_file: Path, tmp_path: Path) -> None:
    """Each side is printed, and the mismatch is fatal."""
    spec, parts = read_policy(policy_file)
    env = toy(1)
    try:
        goal = LowDim(name="goal", size=2, unit="mm", frame="world", body="goal")
        lowdim = (spec.observation.lowdim[0], goal)
        other = spec.model_copy(update={"observation": spec.observation.model_copy(update={"lowdim": lowdim})})
        with pytest.raises(UserError, match=r"do not agree.*'unit': 'mm'.*\|.*'unit': 'm'"):
            require_match(other, env.observation, env.action, "simulator")
        less = spec.model_copy(update={"observation": spec.observation.model_copy(update={"lowdim": lowdim[:1]})})
        require_match(less, env.observation, env.action, "simulator")  # it need not look at all that is offered
        camera = Camera(name="front", height=8, width=8, field_of_view=45.0)
        seeing = spec.model_copy(update={"observation": spec.observation.model_copy(update={"cameras": (camera,)})})
        with pytest.raises(UserError, match=r"observation.cameras: .*'multisampling': 0.* \| \(\)"):
            require_match(seeing, env.observation, env.action, "simulator")
    finally:
        env.close()
    policy = load_policy(policy_file)
    slower = spec.model_copy(update={"action": spec.action.model_copy(update={"control_hz": 10})})
    save_policy(tmp_path / "p.safetensors", slower, {"ema": policy.network, "normalizer": policy.normalizer})
    assert cli.main(["evaluate", f"checkpoint={tmp_path / 'p.safetensors'}", f"run_dir={tmp_path / 'run'}"]) == 2
    assert set(parts) == {"raw", "ema", "normalizer"}


def test_command_reports_intervals_and_every_seed(policy_file: Path, tmp_path: Path) -> None:
    arguments = (
        f"checkpoint={policy_file}",
        f"baseline={policy_file}",
        "evaluation.episodes=20",
        "evaluation.workers=1",
    )
    for name in ("first", "second"):
        assert cli.main(["evaluate", *arguments, "threads=1", f"run_dir={tmp_path / name}"]) == 0
    reports = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("first", "second")]
    assert reports[0] == reports[1], "exactly the same when run twice"
    assert reports[0]["policy"]["seeds"] == list(range(1_000_000, 1_000_020))
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    rate = summary["policy"]["success_rate"]
    assert rate["low"] <= rate["value"] <= rate["high"]
    assert summary["difference"]["value"] == 0
    assert summary["difference"]["low"] < 0 < summary["difference"]["high"]


@pytest.mark.parametrize(("option", "expected"), [
    ("evaluation.weights=raw", 0), ("evaluation.steps=5", 0), ("evaluation.stochastic=true", 0),
    ("evaluation.steps=7", 2), ("evaluation.weights=best", 2), ("evaluation.episodes=0", 2),
    ("evaluation.first_seed=-1", 2), ("evaluation.first_seed=4294967295", 2),
])  # fmt: skip
def test_overrides_at_evaluation(option: str, expected: int, policy_file: Path, tmp_path: Path) -> None:
    few = ("evaluation.episodes=4",) if "episodes" not in option else ()
    arguments = (f"checkpoint={policy_file}", "evaluation.workers=1", *few, option, f"run_dir={tmp_path / 'run'}")
    assert cli.main(["evaluate", *arguments]) == expected
    assert (tmp_path / "run").exists() == (expected == 0)


def test_films_show_the_episode(policy_file: Path, tmp_path: Path) -> None:
    arguments = (f"checkpoint={policy_file}", "evaluation.episodes=2", "evaluation.workers=1", "evaluation.video=1")
    assert cli.main(["evaluate", *arguments, f"run_dir={tmp_path / 'run'}"]) == 0
    films = list((tmp_path / "run" / "videos").iterdir())
    assert {film.suffix for film in films} == {".mp4", ".png"}
    assert all(film.stat().st_size > 1000 for film in films)
