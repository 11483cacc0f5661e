"""Images in both stages: what is gathered, shifted, stored and seen; and runs that go on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from d2ppo_core.conf.schema import AlgorithmConfig, Config, PolicyConfig, RolloutConfig, ScheduleConfig, TrainConfig
from d2ppo_core.contract import PolicySpec
from d2ppo_core.data.robomimic import RENDERING, read_demonstrations, write_demonstrations
from d2ppo_core.data.windows import ChunkWindows
from d2ppo_core.dispersive import DispersiveLoss
from d2ppo_core.errors import UserError
from d2ppo_core.inference import Actor, load_policy
from d2ppo_core.keyed import generator
from d2ppo_core.network_specs import GaussianMLPSpec, GaussianSpec
from d2ppo_core.networks.vision import draw_shift, random_shift
from d2ppo_core.observation import model_observation
from d2ppo_core.policies.base import Policy
from d2ppo_core.policies.build import build_policy
from d2ppo_core.pretrain import Pretrainer
from d2ppo_core.pretrain_seeds import SeedStack
from d2ppo_core.pretrain_setup import policy_of, split_windows
from d2ppo_core.rl.finetune import Finetuner
from d2ppo_core.rl.rollout import Collector, Rollout
from d2ppo_core.rl.setup import fresh_critic, prepare_policy
from d2ppo_core.runs import RunFolder
from painted import CAMERAS, HEIGHT, VISION, WIDTH, Painted, painted_demonstrations, painted_episodes, seeing_spec

Array = np.ndarray
GAUSSIAN = seeing_spec(GaussianSpec(), GaussianMLPSpec(hidden=(8, 8, 8), vision=VISION))
SPECS = pytest.mark.parametrize("spec", [seeing_spec(), GAUSSIAN], ids=["ddim", "gaussian"])


# --- from file and simulator to tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("history", [1, 3])
def test_windows_equal_a_naive_loop(history: int, pad: bool) -> None:
    demos, horizon = painted_demonstrations((7, 2, 9)), 4
    images = [
        torch.from_numpy(np.stack([np.moveaxis(demos.images[c.name][n], -1, 1) for c in CAMERAS], 1)) for n in range(3)
    ]
    windows = ChunkWindows(demos.states, demos.actions, history, horizon, pad, images=images)
    expected = []
    for n, (states, actions) in enumerate(zip(demos.states, demos.actions, strict=True)):
        for now in range(len(actions) if pad else len(actions) - horizon + 1):
            back = [max(0, now - h) for h in reversed(range(history))]
            ahead = [min(len(actions) - 1, now + h) for h in range(horizon)]
            pictures = np.stack([[demos.images[c.name][n][b] for c in CAMERAS] for b in back])  # (To, cameras, H, W, 3)
            expected.append((states[back], np.moveaxis(pictures, -1, 2), actions[ahead]))
    assert len(windows) == len(expected)
    order = torch.randperm(len(expected), generator=torch.Generator().manual_seed(0))
    seen, chunks = windows.gather(order)
    assert seen.images.dtype == torch.uint8
    assert seen.images.shape == (len(expected), history, 2, 3, HEIGHT, WIDTH)
    for row, index in enumerate(order):
        for got, right in zip((seen.state, seen.images, chunks), expected[index], strict=True):
            np.testing.assert_array_equal(got[row], right)


def test_a_file_of_images_becomes_windows(tmp_path: Path) -> None:
    """The contract's order of cameras, not the file's; the held-out episode keeps its own pictures."""
    spec = seeing_spec(history=2)
    about = [c.model_dump() for c in reversed(CAMERAS)]
    args = {"env_name": "Point", "env_version": "1", "type": 1, "env_kwargs": {"control_freq": 20}}
    write_demonstrations(tmp_path / "p.hdf5", painted_episodes(), args, {RENDERING: json.dumps(about)})
    demos = read_demonstrations(tmp_path / "p.hdf5", "Point", spec.observation, spec.action)
    config = Config(train=TrainConfig(holdout=0.3))
    used, held = split_windows(config, policy_of(config, demos, spec), demos, torch.device("cpu"))
    episodes, lengths = painted_episodes(), set()
    for windows in (used, held):
        seen, _ = windows.gather(torch.arange(len(windows)))
        for state, images in zip(seen.state, seen.images, strict=True):
            found = [
                (n, t)
                for n, e in enumerate(episodes)
                for t in range(len(e.actions))
                if np.allclose(np.r_[e.obs["a"][t], e.obs["b"][t]], state[-1])
            ]
            ((n, t),) = found
            lengths.add((windows is used, len(episodes[n].actions)))
            for c, camera in enumerate(CAMERAS):
                for h, when in ((1, t), (0, max(0, t - 1))):
                    np.testing.assert_array_equal(images[h, c].permute(1, 2, 0), episodes[n].obs[camera.key][when])
    assert len(lengths) == 3  # no episode is in both


def test_cameras_come_in_the_contracts_order() -> None:
    spec = seeing_spec(history=2)
    raw = Painted(3, history=2).reset([0, 1, 2], [5, 6, 7])
    assert list(raw)[-1] == "left_image"
    seen = model_observation(spec.observation, raw)
    assert seen.images.dtype == torch.uint8
    for c, name in enumerate(("left_image", "right_image")):
        np.testing.assert_array_equal(seen.images[:, :, c], np.moveaxis(raw[name], -1, 2))
    turned = spec.observation.model_copy(update={"cameras": CAMERAS[::-1]})
    assert torch.equal(model_observation(turned, raw).images, seen.images.flip(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("right_image"), "lacks 'right_image'"),
        (lambda raw: raw.update(left_image=raw["left_image"] / 255), "is float64"),
        (lambda raw: raw.update(left_image=raw["left_image"][..., ::2, :]), "expects uint8"),
        (lambda raw: raw.update(left_image=np.moveaxis(raw["left_image"], 3, 2)), "expects uint8"),
        (lambda raw: raw.update(left_image=np.moveaxis(raw["left_image"], -1, -3)), "expects uint8"),
        (lambda raw: raw.update(left_image=raw["left_image"][..., :1]), "expects uint8"),
        (lambda raw: raw.update({c.key: raw[c.key][:, 0] for c in CAMERAS}), "expects uint8"),
        (lambda raw: raw.update({c.key: raw[c.key][:, :1] for c in CAMERAS}), "3 x 1 pictures of a camera and 3 x 2"),
        (lambda raw: raw.update({c.key: raw[c.key][:2] for c in CAMERAS}), "2 x 2 pictures of a camera and 3 x 2"),
    ],
)
def test_other_images_are_refused(change: Any, message: str) -> None:
    raw = Painted(3, history=2).reset([0, 1, 2], [5, 6, 7])
    change(raw)
    with pytest.raises(UserError, match=message):
        model_observation(seeing_spec(history=2).observation, raw)


# --- pre-training -----------------------------------------------------------------------------------------------------


def pretrainer(spec: PolicySpec, seed: int = 3, **train: object) -> Pretrainer:
    options = {"steps": 12, "batch": 5, "holdout": 0.3, "log_every": 3, "validate_every": 4, "save_every": 5}
    config = Config(seed=seed, policy=PolicyConfig(horizon=3), train=TrainConfig(**(options | train)))  # type: ignore[arg-type]
    config.train.optimiser = ScheduleConfig(lr=1e-2, lr_min=1e-3)
    demos = painted_demonstrations()
    loss = DispersiveLoss(config.dispersive)
    return Pretrainer(config, policy_of(config, demos, spec), demos, loss, torch.device("cpu"))


@contextmanager
def watched(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Every batch of images that the encoder of this network or critic looks at."""
    seen: list[Tensor] = []
    real = module.encoder.forward

    def forward(state: Tensor, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        seen.append(images.clone())
        return real(state, images)

    with monkeypatch.context() as patch:
        patch.setattr(module.encoder, "forward", forward)
        yield seen


@SPECS
def test_images_are_shifted_while_training_only(spec: PolicySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """By offsets that the step names; validation and acting look at the pictures as they are."""
    run = pretrainer(spec)
    for step in (0, 7):
        clean, x0 = run.windows.gather(run.batches(step))
        draw = generator(3, "diffusion", step)
        run.policy.training_noise(len(x0), draw)
        expected = random_shift(clean.images, draw_shift((5, 1, 2), 2, draw), 2)
        with watched(run.policy.network, monkeypatch) as seen:
            run.train_step(step, log=False)
        assert len(seen) == 1
        assert torch.equal(seen[0], expected)
        changed = (expected != clean.images).flatten(3).any(3)
        assert changed.any(0).all() and not torch.equal(expected[:, :, 0] - clean.images[:, :, 0], expected[:, :, 1])
        assert run.windows.gather(run.batches(step))[0].images.equal(clean.images)  # the data stay as they are
    held = run.held_out.gather(torch.arange(len(run.held_out)))[0].images
    run.best = -1.0  # nothing improves, so nothing is saved
    with watched(run.ema, monkeypatch) as seen:
        run._validate(None)  # type: ignore[arg-type]
    assert len(seen) == 2
    for images in seen:
        assert all(any(torch.equal(image, clean) for clean in held) for image in images)
    raw = Painted(3).reset([0, 1, 2], [5, 6, 7])
    with watched(run.policy.network, monkeypatch) as seen:
        Actor(run.policy, 0).act(raw, [5, 6, 7], [0, 0, 0])
    assert torch.equal(seen[0], model_observation(spec.observation, raw).images)


def test_no_shift_where_the_contract_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = seeing_spec()
    still = spec.network.model_copy(update={"vision": VISION.model_copy(update={"shift": 0})})
    run = pretrainer(spec.model_copy(update={"network": still}))
    with watched(run.policy.network, monkeypatch) as seen:
        run.train_step(0, log=False)
    assert torch.equal(seen[0], run.windows.gather(run.batches(0))[0].images)


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def policy_that_sees(spec: PolicySpec) -> Policy:
    torch.manual_seed(0)
    return build_policy(spec).eval()


def finetuner(spec: PolicySpec, env: Painted | None = None, **algorithm: object) -> Finetuner:
    sampler = {"kind": "gaussian"} if spec.sampler.kind == "gaussian" else {}
    options = {
        "sampler": sampler, "iterations": 5, "batch": 7, "epochs": 2, "critic_hidden": [8, 8, 8], "save_every": 2,
        "target_kl": 0.0, "clip": 0.1, "clip_base": 0.1, "critic_warmup": 0,
        "actor": ScheduleConfig(lr=1e-3, lr_min=1e-3),
    }  # fmt: skip
    rollout = RolloutConfig(envs=3, chunks=6, reset_each_iteration=False)
    config = Config(seed=2, rollout=rollout, algorithm=AlgorithmConfig(**(options | algorithm)))  # type: ignore[arg-type]
    policy = policy_that_sees(spec)
    prepare_policy(policy, config)
    env = env or Painted(3, spec.observation.history)
    return Finetuner(config, config.task, policy, fresh_critic(policy, config), env)  # type: ignore[arg-type]


@SPECS
@pytest.mark.parametrize("history", [1, 2])
def test_a_rollout_holds_what_policy_and_critic_saw(
    spec: PolicySpec, history: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen_spec = spec.observation.model_copy(update={"history": history})
    tuner = finetuner(spec.model_copy(update={"observation": seen_spec}))
    collector = tuner.collector
    collector.reset(0)
    with watched(tuner.policy.network, monkeypatch) as actor_saw, watched(tuner.critic, monkeypatch) as critic_saw:
        r = collector.collect(0)
    assert r.observation.images.dtype == torch.uint8
    assert torch.equal(torch.stack(actor_saw), r.observation.images)
    whole = [images for images in critic_saw if len(images) == 3]
    assert len(whole) >= 7
    ended = r.terminated | r.truncated
    assert 0 < ended.sum() < ended.size and r.terminated.any() and r.truncated.any()
    # values: of the very pictures that are stored
    flat = r.observation.map(lambda rows: rows.flatten(0, 1))
    with torch.no_grad():
        again = tuner.critic(*tuner.policy.condition(flat)).view(6, 3)
    torch.testing.assert_close(r.value, again, rtol=1e-5, atol=1e-6)
    for t in range(5):
        for n in range(3):
            following = r.value[t + 1, n]
            assert r.reset_value[t, n] == following
            assert (r.next_value[t, n] == following) == (not ended[t, n])
            assert r.first[t + 1, n] == ended[t, n]


@SPECS
def test_final_pictures_are_valued_as_the_last_of_their_episode(spec: PolicySpec) -> None:
    """next_value at an episode's end: of its final pictures, shifted as the episode and the chunk name it."""
    env = Painted(3)
    tuner, finals = finetuner(spec, env), []
    real, collector = env.step, tuner.collector

    def step(envs: list[int], chunks: Array) -> Any:
        result = real(envs, chunks)
        seeds, numbers = list(collector.episode_seed), [index + 1 for index in collector.chunk_index]
        finals.append(({k: v.copy() for k, v in result.observation.items()}, seeds, numbers))
        return result

    env.step = step  # type: ignore[method-assign]
    collector.reset(0)
    r = collector.collect(0)
    for t, (raw, seeds, numbers) in enumerate(finals):
        seen = model_observation(spec.observation, raw)
        offsets = [
            draw_shift((1, 2), 2, generator(2, "shift", seed, number))
            for seed, number in zip(seeds, numbers, strict=True)
        ]
        images = random_shift(seen.images, torch.stack(offsets), 2)
        with torch.no_grad():
            value = tuner.critic(tuner.policy.condition(seen)[0], images)
        torch.testing.assert_close(r.next_value[t], value, rtol=1e-5, atol=1e-6)


def collected(spec: PolicySpec, env: Painted, shift: int = 2, chunks: int = 6) -> Rollout:
    policy = policy_that_sees(spec)
    critic = fresh_critic(policy, Config(algorithm=AlgorithmConfig(critic_hidden=[8, 8, 8])))
    collector = Collector(Actor(policy, 2, explore=True), critic, env, chunks, 2, shift)  # type: ignore[arg-type]
    collector.reset(0)
    return collector.collect(0)


def test_the_shift_depends_on_nothing_but_seed_episode_and_chunk() -> None:
    """One environment or three: the same pictures, bit for bit, for the environments they share. Chunks differ."""
    spec = seeing_spec()
    alone, together = collected(spec, Painted(1, still=True)), collected(spec, Painted(3, still=True))
    assert torch.equal(alone.observation.images[:, 0], together.observation.images[:, 0])
    clean = collected(spec, Painted(3, still=True), shift=0).observation.images
    moved = together.observation.images
    for n in range(3):
        for c in range(2):
            places = set()
            for t in range(6):
                fits = [
                    (i, j)
                    for i in range(5)
                    for j in range(5)
                    if torch.equal(random_shift(clean[t, n, :, c], torch.tensor([[i, j]]), 2), moved[t, n, :, c])
                ]
                assert len(fits) == 1
                places.add(fits[0])
            assert len(places) > 1


def test_without_augmentation_nothing_is_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = finetuner(seeing_spec(), Painted(3, still=True), augment=False)
    tuner.collector.reset(0)
    r = tuner.collector.collect(0)
    assert torch.equal(r.observation.images, collected(seeing_spec(), Painted(3, still=True), 0).observation.images)


@SPECS
def test_behaviour_log_probability_is_the_recomputed_one(spec: PolicySpec) -> None:
    """Before anything is learned the ratio is 1, with shifted images; with the clean ones it would not be."""
    tuner = finetuner(spec, Painted(3, still=True))
    tuner.collector.reset(0)
    r = tuner.collector.collect(0)
    ppo, advantage = tuner.ppo, torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    flat = ppo._flatten(r, advantage)
    index = torch.arange(18 * ppo.K)
    mode = tuner.config.minibatch
    assert ppo.losses(ppo._gather(flat, index, mode)).ratio_deviation < 1e-5
    clean = collected(spec, Painted(3, still=True), shift=0).observation.images
    r.observation.images.copy_(clean)
    assert ppo.losses(ppo._gather(ppo._flatten(r, advantage), index, mode)).ratio_deviation > 1e-4


# --- runs -------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill between two steps."""


def run_to_the_end(folder: Path, make: Any, step_name: str, kills: list[int], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`fit`, ended at those steps of the process and started anew from what lies in the folder."""
    for when in [*kills, None]:
        runner = make()
        runner.config.run_dir, runner.config.resume = str(folder), (folder / "resume.pt").exists()
        if when is not None:
            real, count = getattr(runner, step_name), iter(range(when))

            def step(*arguments: Any, real: Any = real, count: Any = count) -> Any:
                if next(count, None) is None:
                    raise Killed
                return real(*arguments)

            setattr(runner, step_name, step)
        try:
            with RunFolder(runner.config, "test") as run:
                runner.fit(run)
        except Killed:
            assert (folder / "resume.pt").exists()
    return runner


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@SPECS
def test_seeds_that_see_are_trained_at_once(spec: PolicySpec) -> None:
    together, alone = [pretrainer(spec, seed) for seed in (3, 4)], [pretrainer(spec, seed) for seed in (3, 4)]
    stack = SeedStack(together)
    for step in range(3):
        stack.train_step(step, log=False)
        for run in alone:
            run.train_step(step, log=False)
    for ours, theirs in zip(together, alone, strict=True):
        weights = dict(theirs.policy.network.named_parameters())
        for name, value in ours.policy.network.named_parameters():
            torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=2e-4, msg=name)


@SPECS
def test_pretraining_goes_on_bit_for_bit(spec: PolicySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Pretrainer:
        return pretrainer(spec)

    whole = run_to_the_end(tmp_path / "whole", make, "train_step", [], monkeypatch)
    killed = run_to_the_end(tmp_path / "killed", make, "train_step", [6, 4], monkeypatch)
    assert_same(whole.policy, killed.policy)
    assert_same(whole.ema, killed.ema)
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
    assert any("validation/loss" in line for line in lines(tmp_path / "whole"))
    loaded, raw = load_policy(tmp_path / "killed" / "policy.safetensors"), Painted(2).reset([0, 1], [5, 6])
    whole.policy.network = whole.ema
    chunks = [Actor(p, 0).act(raw, [5, 6], [0, 1]) for p in (loaded, whole.policy)]
    np.testing.assert_array_equal(*chunks)


@SPECS
@pytest.mark.parametrize("augment", [True, False])
def test_finetuning_goes_on_bit_for_bit(
    spec: PolicySpec, augment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes are carried over from iteration to iteration; both forget them where a resume file was written."""

    def make() -> Finetuner:
        return finetuner(spec, augment=augment, micro_batch=4)

    whole = run_to_the_end(tmp_path / "whole", make, "train_iteration", [], monkeypatch)
    killed = run_to_the_end(tmp_path / "killed", make, "train_iteration", [3, 2], monkeypatch)
    assert_same(whole.policy, killed.policy)
    assert_same(whole.critic, killed.critic)
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
    started = policy_that_sees(spec).network.state_dict()
    assert any(not torch.equal(v, started[k]) for k, v in whole.policy.network.state_dict().items() if k in started)
    left, right = (load_policy(tmp_path / name / "policy.safetensors") for name in ("whole", "killed"))
    assert left.spec == right.spec
    assert_same(left, right)
