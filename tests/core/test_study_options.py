"""What a study varies inside pre-training: annealing, shared step, pairs that differ, batches. Against brute force."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from d2ppo_core import cli
from d2ppo_core.conf.schema import DispersiveConfig, TrainConfig
from d2ppo_core.data.batches import make_batches
from d2ppo_core.data.windows import ChunkWindows
from d2ppo_core.differing import VARIANTS
from d2ppo_core.dispersive import DispersiveLoss
from d2ppo_core.errors import UserError
from d2ppo_core.features import similarity
from d2ppo_core.network_specs import SamplerSpec
from d2ppo_core.observation import Observation
from oracles import small_policy

RNG = np.random.default_rng(3)


def differing(chunks: np.ndarray, quantile: float) -> list[tuple[int, int]]:
    """Pair by pair: the ordered pairs whose chunks differ by more than the quantile."""
    B = len(chunks)
    d = {(i, j): float(((chunks[i] - chunks[j]) ** 2).sum()) for i in range(B) for j in range(B) if i != j}
    threshold = np.quantile(list(d.values()), quantile)
    return [pair for pair, value in d.items() if value > threshold]


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_pairs_that_differ_are_repelled(variant: str) -> None:
    z, chunks, tau, margin = RNG.normal(0.3, 1, (9, 4)), RNG.normal(size=(9, 3, 2)), 0.4, 1.3
    config = DispersiveConfig(variant=variant, differ=0.6, temperature=tau, margin=margin)
    loss, tensor = DispersiveLoss(config), torch.tensor(z, requires_grad=True)
    pairs = loss.pairs_of(torch.tensor(chunks))

    def expected(z: np.ndarray) -> float:
        u, values = z / np.sqrt((z**2).mean()), []
        for i, j in differing(chunks, 0.6):
            squared = ((u[i] - u[j]) ** 2).mean()
            cosine = z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j])
            exponent = -squared if variant == "infonce_l2" else cosine - 1
            values.append(max(0.0, margin - squared) ** 2 if variant == "hinge" else math.exp(exponent / tau))
        return float(np.mean(values)) if variant == "hinge" else math.log(np.mean(values))

    value = loss({"x": tensor}, ("x",), pairs)
    assert value.item() == pytest.approx(expected(z), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, tensor)
    h, numeric = 1e-6, np.zeros_like(z)
    for index in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[index] = h
        numeric[index] = (expected(z + step) - expected(z - step)) / (2 * h)
    np.testing.assert_allclose(gradient.numpy(), numeric, rtol=1e-3, atol=1e-6)


def test_chunks_that_are_all_alike_repel_nothing() -> None:
    loss = DispersiveLoss(DispersiveConfig(differ=0.5))
    pairs = loss.pairs_of(torch.zeros(5, 2, 2))
    assert loss.of_feature(torch.randn(5, 3), pairs).item() == 0
    assert DispersiveLoss(DispersiveConfig()).pairs_of(torch.zeros(5, 2, 2)) is None


def test_similarity_is_the_mean_cosine_of_pairs() -> None:
    z = RNG.normal(0.5, 1, (8, 5))
    cosines = [z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]) for i in range(8) for j in range(8) if i != j]
    assert similarity(torch.tensor(z)) == pytest.approx(np.mean(cosines))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"differ": 1.0}, "quantile"),
        ({"differ": 0.5, "variant": "covariance"}, "variant of pairs"),
        ({"differ": 0.5, "mode": "release"}, "dispersive=normalised"),
        ({"shared_step": True, "mode": "paper"}, "each denoising step in turn"),
        ({"weight": -0.1}, "attract"),
    ],
)
def test_senseless_options_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DispersiveLoss(DispersiveConfig(**options))


def test_a_shared_step_compares_features_at_the_first_rows_step() -> None:
    policy = small_policy(SamplerSpec(train_steps=20, steps=20), double=False)
    state, x0 = torch.randn(6, 1, policy.spec.observation.state_size), torch.randn(6, *policy.spec.chunk_shape)
    t, epsilon = policy.training_noise(6, torch.Generator().manual_seed(1))
    assert len(t.unique()) > 1
    found = policy.loss(
        Observation(state), x0, (t, epsilon), DispersiveLoss(DispersiveConfig(shared_step=True, layer="late"))
    )
    shared = torch.full_like(t, int(t[0]))
    alone = policy.loss(Observation(state), x0, (shared, epsilon), DispersiveLoss(DispersiveConfig(layer="late")))
    torch.testing.assert_close(found.dispersive, alone.dispersive)
    own = policy.loss(Observation(state), x0, (t, epsilon), DispersiveLoss(DispersiveConfig(layer="late")))
    torch.testing.assert_close(found.imitation, own.imitation)  # whose steps stay each row's own
    assert not torch.allclose(found.dispersive, own.dispersive)


def windows(lengths: tuple[int, ...]) -> ChunkWindows:
    states = [np.zeros((n, 1), np.float32) for n in lengths]
    return ChunkWindows(states, [np.zeros((n, 1), np.float32) for n in lengths], 1, 1, True)


def batches_of(batching: str, lengths: tuple[int, ...], batch: int, epochs: int = 3) -> list[list[int]]:
    made = make_batches(windows(lengths), TrainConfig(batch=batch, batching=batching), seed=5)
    steps = range(epochs * made.per_epoch)
    result = [made(step).tolist() for step in steps]
    again = make_batches(windows(lengths), TrainConfig(batch=batch, batching=batching), seed=5)
    assert [again(step).tolist() for step in reversed(steps)] == result[::-1]  # a step alone names its batch
    assert all(len(rows) == batch for rows in result)
    return result


LENGTHS = (7, 12, 9, 4, 8)


@pytest.mark.parametrize("batching", ["random", "trajectory", "separated"])
def test_an_epoch_holds_no_window_twice(batching: str) -> None:
    batches = batches_of(batching, LENGTHS, 6)
    per_epoch = len(batches) // 3
    assert per_epoch == sum(LENGTHS) // 6
    for epoch in range(3):
        rows = [row for rows in batches[epoch * per_epoch :][:per_epoch] for row in rows]
        assert len(set(rows)) == len(rows) == per_epoch * 6
    assert batches[:per_epoch] != batches[per_epoch : 2 * per_epoch]


def test_a_batch_of_a_trajectory_is_of_as_few_episodes_as_fill_it() -> None:
    owner = np.repeat(range(5), 8)
    for rows in batches_of("trajectory", (8,) * 5, 8):
        assert len(set(owner[rows])) <= 3  # two neighbours, or the cut end and start of the epoch's order
    assert max(len(set(owner[rows])) for rows in batches_of("random", (8,) * 5, 8)) > 3


def test_separated_windows_are_far_apart() -> None:
    for rows in batches_of("separated", LENGTHS, 6):
        assert min(np.diff(sorted(rows))) >= sum(LENGTHS) // 6


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lambda_falls_to_zero_and_layers_are_watched(reach_file: Path, tmp_path: Path) -> None:
    """The logged total is imitation + falling lambda * dispersion, alone and with several seeds at once."""
    options = [
        *("pretrain", "task=reach", "experiment=debug", f"data={reach_file}", "threads=1", "train.log_every=1"),
        *("dispersive.anneal=true", "dispersive.weight=0.8", "dispersive.watch=[early,late]", "train.batch=16"),
    ]
    assert cli.main([*options, f"run_dir={tmp_path / 'one'}"]) == 0
    assert cli.main([*options, "seeds=[0,1]", f"run_dir={tmp_path / 'two'}"]) == 0
    for folder in (tmp_path / "one", tmp_path / "two" / "seed=1"):
        steps = [line for line in lines(folder) if "train/loss" in line]
        assert len(steps) == 20
        for n, line in enumerate(steps):
            weight = 0.8 * (1 - n / 20)
            expected = line["train/imitation_loss"] + weight * line["dispersive/loss"]
            assert line["train/loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert steps[0]["features/early/similarity"] == pytest.approx(steps[0]["dispersive/similarity"])
        assert steps[0]["features/late/effective_rank"] != steps[0]["features/early/effective_rank"]


def test_wrong_batching_and_layers_are_refused(reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = ["pretrain", "task=reach", "experiment=debug", f"data={reach_file}", f"run_dir={tmp_path / 'run'}"]
    assert cli.main([*base, "train.batching=sorted"]) == 2
    assert "train.batching is 'sorted'; choose one of" in capsys.readouterr().err
    assert cli.main([*base, "dispersive.watch=[earliest]"]) == 2
    assert "no feature called 'earliest'" in capsys.readouterr().err
    assert cli.main([*base, "dispersive.differ=0.5", "seeds=[0,1]"]) == 2
    assert "one seed at a time" in capsys.readouterr().err
