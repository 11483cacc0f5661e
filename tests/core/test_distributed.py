"""Two processes that share each batch learn what one process learns, end together, and go on when one was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from d2ppo_core import cli
from d2ppo_core.checkpoint import read_policy
from d2ppo_core.distributed import ALONE, Ranks
from d2ppo_core.errors import UserError
from ranks_worker import KILLED, LOSSES, OPTIONS, RUNS, everything

TORCHRUN = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
WORKER = str(Path(__file__).parent.parent / "ranks_worker.py")
One = tuple[Path, list[torch.Tensor]]  # the folder of the runs, and the gradients
Two = tuple[Path, list[tuple[int, str]]]  # the folder, and exit code and stderr of each process


def pair(*arguments: str) -> list[tuple[int, str]]:
    """Two processes as torchrun starts them, which hold the store as its agent does; exit code and stderr of each."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    about = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    about |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **about, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


@pytest.fixture(scope="module")
def together(reach_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Two:
    """The folder that the two processes of `ranks_worker.py` filled, and how each ended."""
    folder = tmp_path_factory.mktemp("two")
    ends = pair(WORKER, str(reach_file), str(folder))
    assert (folder / "whole" / "summary.json").exists(), "\n".join(errors for _, errors in ends)
    return folder, ends


@pytest.fixture(scope="module")
def alone(reach_file: Path, tmp_path_factory: pytest.TempPathFactory) -> One:
    """The same from one process."""
    folder = tmp_path_factory.mktemp("one")
    return folder, everything(str(reach_file), folder, ALONE)


def weights(run: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for part, tensors in read_policy(run / "policy.safetensors")[1].items():
        yield from ((f"{part}.{name}", value) for name, value in tensors.items())


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


@pytest.mark.parametrize("name", [*RUNS, "images"])
def test_two_processes_learn_what_one_learns(name: str, together: Two, alone: One) -> None:
    """Raw and averaged weights and every metric, to float32's rounding: 12 steps, which move a weight by up to 1e-2.

    A shift of all keys changes no attention, so the gradient of their bias is rounding itself, which Adam makes large.
    The transformer's features hardly differ so early in training, and their distances are rounding, too.
    """
    expected = dict(weights(alone[0] / name))
    for tensor, value in weights(together[0] / name):
        if not tensor.endswith("key_value.bias"):
            assert (value - expected[tensor]).abs().max() <= 5e-6, tensor
    ours, theirs = lines(together[0] / name), lines(alone[0] / name)
    assert len(ours) == len(theirs) > 3
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=5e-3 if name == "transformer" else 1e-6)


def test_the_gradient_of_every_dispersive_loss_is_that_of_the_whole_batch(together: Two, alone: One) -> None:
    """float64, after averaging, on both processes."""
    for rank in range(2):
        shared = torch.load(together[0] / f"gradients-{rank}.pt", weights_only=True)
        for config, ours, theirs in zip(LOSSES, shared, alone[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=str(config))


def test_a_killed_process_leaves_a_run_that_goes_on(reach_file: Path, together: Two, tmp_path: Path) -> None:
    """torchrun ends the other and starts both again: the run is bit for bit the one that was not killed."""
    run = tmp_path / "run"
    arguments = ["pretrain", f"data={reach_file}", f"run_dir={run}", "resume=true", *OPTIONS, *KILLED]
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *TORCHRUN, "-m", "d2ppo_core", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while torchrun.poll() is None and not (run / "resume.pt").exists():
            time.sleep(0.01)
        assert not (run / "policy.safetensors").exists()
        os.kill(process_of_rank(1, torchrun.pid), signal.SIGKILL)
        _, errors = torchrun.communicate(timeout=300)
    finally:
        torchrun.terminate()
    assert torchrun.returncode == 0, errors
    assert "exitcode: -9" in errors
    whole = dict(weights(together[0] / "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in weights(run))
    assert lines(run) == lines(together[0] / "whole")


def process_of_rank(rank: int, torchrun: int) -> int:
    """Its process id."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"torchrun has no process of rank {rank}")


def test_what_the_first_process_finds_ends_both(together: Two) -> None:
    """The folder is taken: exit code 2 from both, the sentence once, and nobody waits."""
    ends = together[1]
    assert [code for code, _ in ends] == [2, 2]
    assert "".join(errors for _, errors in ends).count("d2ppo: ") == 1
    assert "already holds a run; go on with it by resume=true" in ends[0][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "checkpoint=x"], "`d2ppo finetune` is one process; start it without torchrun"),
        (["pretrain", "-m", "seed=0,1"], "a sweep (-m) runs one process at a time"),
        (["pretrain", "task=reach"], "WORLD_SIZE is set, but not RANK, MASTER_ADDR, MASTER_PORT; start by torchrun"),
    ],
)
def test_what_torchrun_cannot_start_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_seeds_and_torchrun_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("d2ppo_core.pretrain.join", lambda device: Ranks(0, 2))
    assert cli.main(["pretrain", "task=reach", "seeds=[1,2]"]) == 2
    assert "seeds= trains several policies in one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("batch", "windows", "fix"),
    [
        (15, 99, "give train.batch=14 or 16"),
        (15, 15, "give train.batch=14"),
        (1, 99, "give train.batch=2"),
        (1, 1, "start fewer"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(batch: int, windows: int, fix: str) -> None:
    with pytest.raises(UserError, match=f"2 processes cannot share the {batch} windows of a batch equally; {fix}$"):
        Ranks(0, 2).require_shares(batch, windows)
    Ranks(0, 3).require_shares(15, windows)
