"""Every kind of policy behind the one interface: sampling against NumPy, the dispersive loss, files, commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2ppo_core import cli
from d2ppo_core.checkpoint import read_policy, save_policy
from d2ppo_core.conf.schema import DispersiveConfig
from d2ppo_core.contract import PolicySpec
from d2ppo_core.dispersive import DispersiveLoss, relative_distance
from d2ppo_core.files import sha256
from d2ppo_core.inference import Actor, load_policy
from d2ppo_core.network_specs import (
    GaussianMLPSpec,
    GaussianSpec,
    GaussianTransformerSpec,
    GMMMLPSpec,
    GMMTransformerSpec,
    MLPSpec,
    SamplerSpec,
    UNetSpec,
)
from d2ppo_core.observation import Observation
from d2ppo_core.policies.base import Policy
from d2ppo_core.policies.build import build_policy
from d2ppo_core.rl.finetune import Finetuner
from network_oracles import frequencies, randomised, unet
from oracles import alpha_bars, denoise, log_normal, small_policy, small_spec, weights_of
from painted import VISION, seeing_spec

Array = np.ndarray
GAUSSIAN, GMM = GaussianSpec(learn_std=True), GaussianSpec(kind="gmm", learn_std=True)
DDIM = SamplerSpec(kind="ddim", train_steps=20, steps=4, finetuned_steps=2, eta=0.6)
UNET = UNetSpec(width=4, multipliers=(1, 2), time_size=4, groups=2)
BLIND: dict[str, tuple[Any, Any]] = {
    "diffusion_mlp": (DDIM, MLPSpec(hidden=(16, 16, 16), time_size=4)),
    "diffusion_unet": (DDIM, UNET),
    "gaussian_mlp": (GAUSSIAN, GaussianMLPSpec(hidden=(16, 16, 16))),
    "gmm_mlp": (GMM, GMMMLPSpec(hidden=(16, 16, 16), modes=3)),
    "gaussian_transformer": (GAUSSIAN, GaussianTransformerSpec(width=8, depth=4, heads=2)),
    "gmm_transformer": (GMM, GMMTransformerSpec(width=8, depth=4, heads=2, modes=3)),
}
SEEING = {f"{kind}, seeing": (sampler, network) for kind, (sampler, network) in BLIND.items()}


def spec_of(kind: str) -> PolicySpec:
    """Chunks of 4, two of them executed."""
    if kind in BLIND:
        return small_spec(*BLIND[kind], horizon=4)
    sampler, network = SEEING[kind]
    return seeing_spec(sampler, network.model_copy(update={"vision": VISION})).model_copy(update={"horizon": 4})


def policy_of_kind(kind: str) -> Policy:
    torch.manual_seed(0)
    return build_policy(spec_of(kind))


def observations(kind: str, count: int, spread: float = 1.0) -> Observation:
    """`count` of them around one: near-duplicates where the spread is small."""
    draw = torch.Generator().manual_seed(1)
    state = torch.randn(1, 1, 3, generator=draw) + spread * torch.randn(count, 1, 3, generator=draw)
    if kind in BLIND:
        return Observation(state)
    images = torch.randint(256, (1, 1, 2, 3, 16, 20), generator=draw).expand(count, -1, -1, -1, -1, -1)
    noise = (20 * spread * torch.randn(images.shape, generator=draw)).long()
    return Observation(state, (images + noise).clamp(0, 255).to(torch.uint8))


# --- a network that is no MLP goes through the same loss, sampler and log-probability ---------------------------------


def unet_policy() -> tuple[Policy, Observation]:
    policy = small_policy(DDIM, network=UNET, horizon=4)
    policy.network.time.frequencies = torch.tensor(frequencies(4))  # the network's are float32
    policy.freeze_base()
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in policy.network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return policy, Observation(torch.randn(5, 1, 3, generator=draw, dtype=torch.float64))


@pytest.mark.parametrize("explore", [True, False])
def test_a_unet_samples_as_the_formulas_say(explore: bool) -> None:
    """The first two of four DDIM steps by the frozen network, the rest by the trained one, and their densities."""
    policy, seen = unet_policy()
    noise = torch.randn(5, *policy.noise_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    state, nets = seen.state[:, 0].numpy(), (weights_of(policy.base), weights_of(policy.network))  # type: ignore[arg-type]
    steps = denoise(
        DDIM, explore, noise.numpy(), lambda x, t: unet(nets[t < 10], UNET, x, np.full(len(x), t), state)[0]
    )
    sample = policy.sample(seen, noise, explore)
    np.testing.assert_allclose(sample.chain, np.stack(steps.x[2:], 1), atol=1e-4)
    np.testing.assert_allclose(sample.chunk, steps.x[-1], atol=1e-4)
    if not explore:
        return
    for k in range(2):
        std = max(steps.sigma[2 + k], DDIM.min_logprob_std)
        expected = log_normal(steps.x[3 + k], steps.mean[2 + k], std)
        np.testing.assert_allclose(sample.log_prob[:, k], expected, atol=5e-3)
        index = torch.full((5,), k)
        again = policy.log_prob(policy.encode(seen), sample.chain[:, k], sample.chain[:, k + 1], index)
        torch.testing.assert_close(again.detach(), sample.log_prob[:, k], rtol=0, atol=1e-6)


def test_a_unet_is_pre_trained_as_the_formulas_say() -> None:
    policy, seen = unet_policy()
    rng, t = np.random.default_rng(0), np.array([0, 19, 7, 3, 12])
    x0, epsilon, abar = rng.normal(size=(5, 4, 2)), rng.normal(size=(5, 4, 2)), alpha_bars(20)[t][:, None, None]
    got = policy.loss(seen, torch.tensor(x0), (torch.tensor(t), torch.tensor(epsilon)))
    noisy = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * epsilon
    predicted, _ = unet(weights_of(policy.network), UNET, noisy, t, seen.state[:, 0].numpy())
    assert got.imitation.item() == pytest.approx(((predicted - epsilon) ** 2).mean(), abs=1e-5)


# --- dispersive loss --------------------------------------------------------------------------------------------------


def loss_of(mode: str, variant: str, layer: str) -> DispersiveLoss:
    return DispersiveLoss(DispersiveConfig(mode=mode, variant=variant, layer=layer))


@pytest.mark.parametrize(
    ("kind", "layer"), [(k, layer) for k in BLIND for layer in ("early", "mid", "late")] + [(k, "all") for k in SEEING]
)
def test_every_form_gives_finite_values_and_gradients(kind: str, layer: str) -> None:
    policy, seen = policy_of_kind(kind), observations(kind, 6)
    draw = torch.Generator().manual_seed(4)
    x0, noise = torch.randn(6, 4, 2, generator=draw), policy.training_noise(6, draw)
    for mode in ("normalised", "release", "paper"):
        for variant in ("infonce_l2", "infonce_cosine", "hinge", "covariance"):
            if (mode, variant) == ("paper", "covariance"):
                continue
            policy.zero_grad()
            loss = policy.loss(seen, x0, noise, loss_of(mode, variant, layer))
            assert loss.dispersive.isfinite() and loss.imitation.isfinite()
            loss.dispersive.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())
            if mode == "normalised" and variant != "hinge":  # far apart already, a hinge has nothing to do
                assert any(p.grad is not None and p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize(
    ("kind", "layer"),
    [(k, layer) for k in BLIND for layer in ("early", "mid", "late")] + [(k, "early") for k in list(SEEING)[:3]],
)
def test_near_duplicates_move_apart(kind: str, layer: str) -> None:
    """Twelve observations that hardly differ: their features do, relative to their own scale, after a few steps.

    From random weights: features of a transformer as it starts (weights of 0.02) differ by a millionth of their size.
    """
    policy, near = policy_of_kind(kind).double(), observations(kind, 12, spread=0.05)
    randomised(policy.network)
    seen, draw = Observation(near.state.double(), near.images), torch.Generator().manual_seed(5)
    x0 = (0.05 * torch.randn(12, 4, 2, generator=draw)).double()
    noise = tuple(n[:1].expand(12, *n.shape[1:]) for n in policy.training_noise(12, draw))  # nor does their noise
    loss, optimiser = loss_of("normalised", "infonce_l2", layer), torch.optim.Adam(policy.network.parameters(), lr=2e-3)
    (tap,), spread = policy.network.tap(layer), []
    for _ in range(100 if "mlp" in kind else 25):  # a single linear layer of the state is slow
        found = policy.loss(seen, x0, noise, loss)
        spread.append(relative_distance(found.features[tap].detach().flatten(1)))
        optimiser.zero_grad()
        found.dispersive.backward()
        optimiser.step()
    assert spread[-1] > 1.5 * spread[0]


@pytest.mark.parametrize("kind", ["diffusion_unet", "gaussian_transformer", "gmm_transformer"])
@pytest.mark.parametrize("mode", ["release", "off"])
def test_released_layers_of_other_networks_are_refused(
    kind: str, mode: str, reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (f"dispersive={mode}", "dispersive.layer=released_early", f"policy={kind}", f"run_dir={tmp_path / 'run'}")
    assert "no feature called 'released_early'" in refused(
        capsys, "pretrain", "task=reach", f"data={reach_file}", *options
    )
    assert not (tmp_path / "run").exists()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*BLIND, *SEEING])
def test_a_checkpoint_acts_as_its_policy(kind: str, tmp_path: Path) -> None:
    """A learned deviation, a frozen base and statistics included; inspect says what is in it."""
    policy = policy_of_kind(kind)
    if kind.startswith("diffusion"):
        policy.freeze_base()
    draw = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in policy.network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
        policy.normalizer.state_max.add_(torch.rand(3, generator=draw))
        policy.normalizer.action_min.sub_(torch.rand(2, generator=draw))
    path, parts = tmp_path / "policy.safetensors", {"raw": policy.network, "normalizer": policy.normalizer}
    spec = policy.spec.model_copy(update={"weights": "raw"})
    save_policy(path, spec, parts | {"base": policy.base})
    loaded, seen = load_policy(path), observations(kind, 4)
    assert loaded.spec == spec
    noise = torch.randn(4, *policy.noise_shape, generator=draw)
    for explore in (True, False):
        one, other = (p.sample(seen, noise, explore) for p in (policy, loaded))
        assert torch.equal(one.chain, other.chain)
        assert torch.equal(one.log_prob, other.log_prob)
    assert cli.main(["inspect", str(path), "--run-dir", str(tmp_path)]) == 0
    about = json.loads((tmp_path / "inspect.json").read_text())
    assert about["numbers"]["raw"] == sum(p.numel() for p in policy.network.parameters())
    assert about["contract"]["network"]["kind"] == policy.spec.network.kind


# --- commands ---------------------------------------------------------------------------------------------------------

SMALL = {
    "gaussian_mlp": ("policy=gaussian_mlp", "policy.network.hidden=[16,16,16]"),
    "gmm_mlp": ("policy=gmm_mlp", "policy.network.hidden=[16,16,16]", "policy.network.modes=3"),
    "gaussian_transformer": ("policy=gaussian_transformer", "policy.network.width=8", "policy.network.depth=1"),
    "gmm_transformer": ("policy=gmm_transformer", "policy.network.width=8", "policy.network.depth=1"),
    "diffusion_unet": ("policy=diffusion_unet", "policy.network.width=8", "policy.sampler.train_steps=5",
                       "policy.sampler.steps=5"),
    "diffusion_mlp": ("policy=diffusion_mlp", "policy.network.hidden=[16,16,16]"),
}  # fmt: skip
ALGORITHM = {"gaussian": "ppo_gaussian", "gmm": "ppo_gmm", "diffusion": "dppo_ddim"}
TRAIN = ("train.steps=6", "train.batch=8", "train.log_every=3", "threads=1", "device=cpu")
TUNE = ("algorithm.iterations=3", "rollout.envs=3", "rollout.chunks=4", "algorithm.batch=6", "algorithm.epochs=1",
        "algorithm.save_every=1", "algorithm.critic_hidden=[8,8,8]", "algorithm.evaluate_every=0", "threads=1",
        "device=cpu")  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that was printed."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def checkpoints(reach_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pre-trained policy of each kind, of the toy task."""
    folder, found = tmp_path_factory.mktemp("kinds"), {}
    for kind, options in SMALL.items():
        run = ("task=reach", f"data={reach_file}", f"run_dir={folder / kind}")
        assert cli.main(["pretrain", *run, *options, *TRAIN]) == 0
        found[kind] = folder / kind / "policy.safetensors"
    return found


@pytest.mark.parametrize("kind", SMALL)
def test_every_kind_is_evaluated_and_fine_tuned(kind: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = f"checkpoint={checkpoints[kind]}"
    episodes = ("evaluation.episodes=2", "evaluation.envs=2", "evaluation.max_episode_steps=12", "threads=1")
    assert cli.main(["evaluate", checkpoint, *episodes, f"run_dir={tmp_path / 'before'}"]) == 0
    algorithm = f"algorithm={ALGORITHM[kind.partition('_')[0]]}"
    assert cli.main(["finetune", checkpoint, algorithm, *TUNE, f"run_dir={tmp_path / 'tuned'}"]) == 0
    tuned = tmp_path / "tuned" / "policy.safetensors"
    assert cli.main(["evaluate", f"checkpoint={tuned}", *episodes, f"run_dir={tmp_path / 'after'}"]) == 0
    for name in ("before", "after"):
        assert json.loads((tmp_path / name / "summary.json").read_text())["policy"]["episodes"] == 2
    (spec, parts), (before, _) = read_policy(tuned), read_policy(checkpoints[kind])
    assert spec.provenance.stage == "finetune" and spec.provenance.dataset_digest == before.provenance.dataset_digest
    if not kind.startswith("diffusion"):
        assert spec.sampler.learn_std and "log_variance" in parts["raw"]
        lines = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
        assert lines[1]["ppo/ratio_deviation"] < 0.05


FINETUNE = [
    (("gaussian_mlp",), "algorithm.sampler.kind=ddpm does not fit the policy, which draws by gaussian; choose"),
    (("gaussian_mlp", "algorithm=ppo_gmm"), "choose algorithm=ppo_gaussian"),
    (("gmm_transformer", "algorithm=ppo_gaussian"), "choose algorithm=ppo_gmm"),
    (("gmm_mlp", "algorithm=dppo_ddim"), "choose algorithm=ppo_gmm"),
    (("diffusion_mlp", "algorithm=ppo_gaussian"), "choose algorithm=dppo or dppo_ddim"),
    (("diffusion_unet", "algorithm=ppo_gmm"), "choose algorithm=dppo or dppo_ddim"),
    (("gaussian_mlp", "algorithm=ppo_gaussian", "algorithm.sampling_std_final=0.05"), "no denoising steps to anneal"),
    (("gmm_mlp", "algorithm=ppo_gmm", "algorithm.finetuned_steps_every=2"), "no denoising steps to anneal"),
    (("gaussian_mlp", "algorithm=ppo_gaussian", "algorithm.sampler.std=0.5"), "a learned std starts inside"),
    (("gaussian_mlp", "algorithm=ppo_gaussian", "+algorithm.sampler.steps=5"), "Extra inputs are not permitted"),
    (("gaussian_mlp", "algorithm=ppo_gaussian", "scratch=true"), "exclude each other"),
    (("gaussian_mlp", "algorithm=ppo_gaussian", "algorithm.micro_batch=-1"), "micro_batch=-1 must be at least 0"),
    (("gaussian_mlp", "algorithm=ppo_gaussian", "rollout.envs=1", "rollout.chunks=1"), "must be at least 2"),
]


@pytest.mark.parametrize(("case", "message"), FINETUNE)
def test_algorithms_that_do_not_fit_are_refused(
    case: tuple[str, ...],
    message: str,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, *options = case
    run = (f"checkpoint={checkpoints[kind]}", f"run_dir={tmp_path / 'run'}")
    assert message in refused(capsys, "finetune", *run, *options)
    assert not (tmp_path / "run").exists()


def test_only_policies_that_denoise_take_another_number_of_steps(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = (f"run_dir={tmp_path / 'run'}", "evaluation.steps=5")
    for kind in ("gaussian_mlp", "gmm_transformer"):
        assert "does not denoise" in refused(capsys, "evaluate", f"checkpoint={checkpoints[kind]}", *run)
        assert not (tmp_path / "run").exists()
    assert load_policy(checkpoints["diffusion_mlp"], steps=5).spec.sampler.steps == 5


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("task=reach", "policy=gmm_mlp", "policy.sampler.kind=gaussian"), "not from gmm_mlp"),
        (("task=reach", "policy=gaussian_transformer", "policy.sampler.kind=gmm"), "not from gaussian_transformer"),
        (("task=reach", "policy=gaussian_mlp", "policy.sampler.kind=ddpm"), "policy.sampler is not valid"),
        (("task=reach", "policy=diffusion_unet", "policy.network.kind=diffusion_mlp"), "policy.network is not valid"),
        (("task=reach", "policy=diffusion_vit_mlp"), "looks at images, but the task has these cameras: none"),
        (("task=reach", "policy=gaussian_vit_mlp"), "looks at images, but the task has these cameras: none"),
        (("task=lift_image", "policy=gaussian_mlp"), "sees no images, but the task has these cameras: robot0_eye"),
        (("task=lift_image", "policy=diffusion_unet"), "sees no images"),
        (("policy=gaussian_mlp",), "no task is given"),
    ],
)
def test_policies_that_cannot_be_are_refused(
    command: str, options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From data (which is not even opened) and from scratch."""
    start = ("data=/nowhere.hdf5",) if command == "pretrain" else ("scratch=true",)
    assert message in refused(capsys, command, *start, *options, f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


# --- from scratch -----------------------------------------------------------------------------------------------------


def scratch(run: Path, *options: str) -> int:
    own = ("scratch=true", "task=reach", *SMALL["gaussian_mlp"], "algorithm=ppo_gaussian", *TUNE, f"run_dir={run}")
    return cli.main(["finetune", *own, *options])


def test_from_scratch_without_data(tmp_path: Path) -> None:
    """Identity statistics; the policy says that it has seen no demonstration, and where it has learned."""
    assert scratch(tmp_path / "run") == 0
    spec, parts = read_policy(tmp_path / "run" / "policy.safetensors")
    about, statistics = spec.provenance, parts["normalizer"]
    assert (about.stage, about.dataset, about.dataset_digest) == ("finetune", "", "")
    assert (about.simulator.name, about.simulator.environment) == ("toy", "Reach")
    assert spec.weights == "raw" and "ema" not in parts
    for name in ("state", "action"):
        assert (statistics[f"{name}_min"] == -1).all() and (statistics[f"{name}_max"] == 1).all()
    assert statistics["clip"] == 0


def test_from_scratch_with_the_statistics_of_data(
    reach_file: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The very ones that pre-training computes; the weights are those of no data, named by the seed."""
    assert scratch(tmp_path / "run", f"data={reach_file}") == 0
    spec, parts = read_policy(tmp_path / "run" / "policy.safetensors")
    _, trained = read_policy(checkpoints["gaussian_mlp"])
    for name, value in trained["normalizer"].items():
        assert torch.equal(parts["normalizer"][name], value), name
    assert spec.provenance.dataset == f"{reach_file} (statistics only)"
    assert spec.provenance.dataset_digest == sha256(reach_file)
    assert (spec.provenance.stage, spec.provenance.simulator.name) == ("finetune", "toy")


@pytest.mark.parametrize("data", [True, False])
def test_from_scratch_goes_on_bit_for_bit(
    data: bool, reach_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (f"data={reach_file}",) if data else ()
    assert scratch(tmp_path / "whole", *options) == 0
    real = Finetuner.train_iteration

    def interrupted(self: Finetuner) -> dict:
        if self.iteration == 2:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Finetuner, "train_iteration", interrupted)
    assert scratch(tmp_path / "killed", *options) == 130
    monkeypatch.setattr(Finetuner, "train_iteration", real)
    assert scratch(tmp_path / "killed", *options, "resume=true") == 0
    (spec, parts), (other, others) = (read_policy(tmp_path / n / "policy.safetensors") for n in ("whole", "killed"))
    assert spec == other
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[part][name])
    start = Actor(load_policy(tmp_path / "whole" / "best.safetensors"), 0)
    assert start.policy.spec.provenance.seed == 0
