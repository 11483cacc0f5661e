"""Bad input is answered with one sentence and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from d2ppo_core import __version__, cli, files
from d2ppo_core.data.robomimic import write_demonstrations
from d2ppo_core.errors import UserError
from support import ENV_ARGS, reach_episodes

PRETRAIN = ("pretrain", "task=reach", "experiment=debug", "threads=1")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run in this process; the one sentence that was printed. No traceback, no run folder."""
    assert cli.main(list(arguments)) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("d2ppo: ")
    return lines[0]


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def poke(file: h5py.File, name: str, row: int, value: float) -> None:
    file[name][row] = value


def replace(file: h5py.File, name: str, value: np.ndarray) -> None:
    del file[name]
    file[name] = value


def set_args(file: h5py.File, **values: object) -> None:
    file["data"].attrs["env_args"] = json.dumps({**ENV_ARGS, **values})


DATASETS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "nan in an observation": (
        lambda f: poke(f, "data/demo_3/obs/position", 5, np.nan),
        "demo_3/obs/position holds NaN or infinity at step 5",
    ),
    "infinity in an action": (lambda f: poke(f, "data/demo_2/actions", 1, np.inf), "demo_2/actions holds NaN"),
    "action out of range": (lambda f: poke(f, "data/demo_0/actions", 0, 2.0), "leaves [-1, 1]"),
    "missing key": (lambda f: f.__delitem__("data/demo_1/obs/goal"), "demo_1/obs/goal is missing"),
    "wrong size": (
        lambda f: replace(f, "data/demo_0/obs/goal", np.zeros((20, 3))),
        "has shape (20, 3), expected (T, 2)",
    ),
    "different lengths": (lambda f: replace(f, "data/demo_0/obs/goal", np.zeros((19, 2))), "different lengths"),
    "more observations than actions": (
        lambda f: [replace(f, f"data/demo_0/obs/{key}", np.zeros((21, 2))) for key in ("goal", "position")],
        "different lengths",
    ),
    "no demonstrations": (lambda f: [f.__delitem__(f"data/{n}") for n in list(f["data"])], "holds no demonstrations"),
    "another task": (lambda f: set_args(f, env_name="Lift"), "holds demonstrations of Lift, not of Reach"),
    "robosuite 1.5": (lambda f: set_args(f, env_version="1.5.1"), "robosuite 1.5.1"),
    "another control rate": (lambda f: set_args(f, env_kwargs={"control_freq": 10}), "control_freq 10 instead of 20"),
    "no env_args": (lambda f: f["data"].attrs.__delitem__("env_args"), "not a readable robomimic HDF5 file"),
    "no data group": (lambda f: f.__delitem__("data"), "not a readable robomimic HDF5 file"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_wrong_dataset(name: str, reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = DATASETS[name]
    path = Path(shutil.copy(reach_file, tmp_path / "bad.hdf5"))
    edit(path, change)
    assert expected in refused(capsys, *PRETRAIN, f"data={path}", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_truncated_and_foreign_files(reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(reach_file.read_bytes()[: reach_file.stat().st_size // 2])
    text = tmp_path / "text.hdf5"
    text.write_text("not HDF5")
    for path in (cut, text):
        assert "not a readable robomimic HDF5 file" in refused(
            capsys, *PRETRAIN, f"data={path}", f"run_dir={tmp_path / 'run'}"
        )
    assert "no such file" in refused(capsys, *PRETRAIN, "data=/nowhere/x.hdf5", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_flat_dimension_is_refused_or_centred(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = reach_episodes()
    for episode in episodes:
        episode.obs["goal"][:, 1] = 0.25
    write_demonstrations(tmp_path / "flat.hdf5", episodes, ENV_ARGS, {})
    arguments = (*PRETRAIN, f"data={tmp_path / 'flat.hdf5'}", f"run_dir={tmp_path / 'run'}")
    assert "goal[1] never changes" in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()
    assert cli.main([*arguments, "train.flat_dimensions=centre"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("pretrain", "task=reach", "trian.steps=3"), "did you mean train.steps"),
        (("pretrain", "task=nothing"), "there is no task=nothing; choose one of can, can_image, lift"),
        (("pretrain", "experiment=paper_lft"), "there is no experiment=paper_lft; did you mean paper_lift"),
        (("study", "runn"), "'runn' is no part; did you mean run? (`d2ppo study --help` lists the options)"),
        (("doctor", "xyz"), "there is no `d2ppo doctor xyz`; choose one of"),
        (("pretrain", "task=reach", "train.steps=many"), "could not be converted to Integer"),
        (("pretrain", "task=reach", "minibatch=pears"), "expected one of [pair, chain, importance]"),
        (("pretrain",), "no task is given"),
        (("pretrain", "task=reach"), "no demonstrations are given"),
        (("pretrain", "task=square_image", "data=x"), "sees no images, but the task has these cameras: agentview"),
        (("pretrain", "task=reach", "resume=true", "overwrite=true"), "exclude one another"),
        (("evaluate",), "no policy is given"),
        (("finetune",), "no policy is given"),
        (("fly",), "there is no command 'fly'; choose one of demos, pretrain"),
        (("evalaute", "task=reach"), "there is no command 'evalaute'; did you mean evaluate?"),
    ],
)
def test_wrong_command_line(arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refused(capsys, *arguments)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"d2ppo {__version__}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("dispersive.variant=infonce_l3",), "choose one of infonce_l2"),
        (("dispersive.layer=deep",), "choose one of early"),
        (("dispersive=paper", "dispersive.variant=covariance"), "the paper has no covariance variant"),
        (("dispersive.temperature=0",), "must be above 0"),
        (("policy.network.hidden=[32,32]",), "odd number of equal hidden widths"),
        (("policy.network.width=[32]",), "there is no option 'policy.network.width'"),
        (("+policy.network.width=[32]",), "diffusion_mlp.width: Extra inputs are not permitted"),
        (("policy.sampler.steps=7",), "DDPM takes every step"),
        (("policy.executed=9",), "between 1 and policy.horizon"),
        (("train.steps=0",), "trains nothing"),
        (("train.batch=-3",), "train.batch=-3 must be at least 1"),
        (("train.log_every=0", "train.optimiser.lr=-1"), "train.log_every=0 must be at least 1; train.optimiser.lr"),
        (("threads=-1",), "threads is -1"),
        (("train.holdout=1.0",), "leaves none of the 12 demonstrations"),
        (("device=tpu",), "choose auto, cpu or cuda"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(
    options: tuple[str, ...], expected: str, reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, *PRETRAIN, f"data={reach_file}", f"run_dir={tmp_path / 'run'}", *options)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def policy_file(reach_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "run"
    assert cli.main([*PRETRAIN, f"data={reach_file}", f"run_dir={folder}"]) == 0
    return folder / "policy.safetensors"


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def rewrite(policy: Path, target: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Path:
    with safe_open(str(policy), framework="pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, str(target), metadata=metadata)
    return target


CHECKPOINTS: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "missing tensor": (lambda t, m: t.pop("ema.trunk.last.weight"), "ema.trunk.last.weight is missing"),
    "wrong shape": (lambda t, m: t.update({"ema.trunk.last.bias": torch.zeros(3)}), "has shape (3,)"),
    "foreign tensor": (lambda t, m: t.update({"ema.surprise": torch.zeros(3)}), "ema.surprise is unknown"),
    "nan weights": (lambda t, m: t["ema.trunk.last.bias"].fill_(float("nan")), "holds NaN"),
    "no normaliser": (
        lambda t, m: [t.pop(k) for k in list(t) if k.startswith("normalizer")],
        "normalizer.state_min is missing",
    ),
    "no averaged weights": (lambda t, m: [t.pop(k) for k in list(t) if k.startswith("ema")], "has no 'ema' weights"),
    "no contract": (lambda t, m: m.clear(), "no policy contract inside"),
    "contract of another version": (
        lambda t, m: m.update(d2ppo_spec=m["d2ppo_spec"].replace('"format":1', '"format":9')),
        "no valid policy contract",
    ),
    "contract cut off": (lambda t, m: m.update(d2ppo_spec=m["d2ppo_spec"][:50]), "no valid policy contract"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_wrong_checkpoint(name: str, policy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = CHECKPOINTS[name]
    path = rewrite(policy_file, tmp_path / "bad.safetensors", change)
    assert expected in refused(capsys, "evaluate", f"checkpoint={path}", f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_pickles_are_never_opened(
    policy_file: Path, reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = tmp_path / "executed"
    hostile = tmp_path / "policy.safetensors"
    hostile.write_bytes(pickle.dumps(Evil(str(trap))))
    assert "not a policy checkpoint" in refused(capsys, "evaluate", f"checkpoint={hostile}")
    run = Path(shutil.copytree(policy_file.parent, tmp_path / "run"))
    torch.save({"step": Evil(str(trap))}, run / "resume.pt")
    arguments = (*PRETRAIN, f"data={reach_file}", f"run_dir={run}", "resume=true")
    assert "no resume file of this program" in refused(capsys, *arguments)
    assert not trap.exists()


@pytest.mark.parametrize("size", [0, 100, 5000, -1])
def test_a_resume_file_that_is_cut_off(
    size: int, policy_file: Path, reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(policy_file.parent, tmp_path / "run"))
    whole = (run / "resume.pt").read_bytes()
    (run / "resume.pt").write_bytes(whole[:size])
    said = refused(capsys, *PRETRAIN, f"data={reach_file}", f"run_dir={run}", "resume=true")
    assert f"{run / 'resume.pt'} is cut off, damaged, or no resume file" in said


def test_overwriting_removes_the_run_and_nothing_else(
    policy_file: Path, reach_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(policy_file.parent, tmp_path / "run"))
    (run / "thesis.txt").write_text("three years")
    (run / "nested").mkdir()
    (run / "nested" / "config.yaml").write_text("another: run")
    again = (*PRETRAIN, f"data={reach_file}", "overwrite=true")
    assert cli.main([*again, f"run_dir={run}", "train.steps=1", "train.save_every=0"]) == 0
    assert (run / "thesis.txt").read_text() == "three years" and (run / "nested" / "config.yaml").exists()
    assert "steps: 1\n" in (run / "config.yaml").read_text()
    capsys.readouterr()
    for options in ("overwrite=true", "resume=true"):
        said = refused(capsys, *PRETRAIN, f"data={reach_file}", f"run_dir={run / 'nested'}", options)
        assert "is not of a run of d2ppo" in said
    assert (run / "nested" / "config.yaml").read_text() == "another: run"


def test_wrong_task_for_a_checkpoint(policy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("evaluate", "finetune"):
        assert "is a policy for task 'reach', not 'lift'" in refused(
            capsys, name, "task=lift", f"checkpoint={policy_file}"
        )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("algorithm.sampler.steps=7",), "algorithm.sampler"),
        (("algorithm.sampler.finetuned_steps=0",), "nothing would be learned"),
        (("algorithm.sampler.finetuned_steps=21",), "more than the 20 steps"),
        (("algorithm.discount=1.5",), "must lie in [0, 1]"),
        (("algorithm.reward_horizon=9",), "exceeds the predicted horizon"),
        (("algorithm.kl_per=step",), "must be chunk or dimension"),
        (("rollout.envs=0",), "must be at least 1"),
    ],
)
def test_wrong_finetuning_settings(
    options: tuple[str, ...], expected: str, policy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(
        capsys, "finetune", "experiment=debug", f"checkpoint={policy_file}", f"run_dir={tmp_path / 'run'}", *options
    )
    assert expected in message
    assert not (tmp_path / "run").exists()


def test_another_split_of_a_finetuned_policy_is_refused(
    policy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer fine-tuned steps would silently give tuned steps back to the frozen base."""
    once = ("finetune", "experiment=debug", "threads=1", f"checkpoint={policy_file}", f"run_dir={tmp_path / 'once'}")
    assert cli.main([*once, "algorithm.iterations=1"]) == 0
    capsys.readouterr()
    again = ("finetune", "experiment=debug", f"checkpoint={tmp_path / 'once' / 'policy.safetensors'}")
    message = refused(capsys, *again, "algorithm.sampler.finetuned_steps=5", f"run_dir={tmp_path / 'twice'}")
    assert "frozen base" in message


def test_full_disk_leaves_the_old_file_whole(policy_file: Path, tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    target = tmp_path / "file.json"
    files.write_text(target, "old")
    with (
        pytest.raises(UserError, match="the disk is full; free some space and go on"),
        files.atomic_path(target) as partial,
    ):
        with open("/dev/full", "wb") as full:
            full.write(b"x" * 100_000)
        partial.write_text("new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("name", ["pretrain", "demos"])
def test_full_disk_during_a_run(name: str, reach_file: Path, tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse the result's bytes in the middle of a real run."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from d2ppo_core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    own = {"pretrain": (f"data={reach_file}",), "demos": (f"demos.out={tmp_path / 'run' / 'reach.hdf5'}",)}[name]
    arguments = (name, "task=reach", "experiment=debug", "threads=1", *own, f"run_dir={tmp_path / 'run'}")
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 2, result.stderr
    assert "the disk is full; free some space" in result.stderr
    assert not list((tmp_path / "run").glob("*.safetensors")) and not list((tmp_path / "run").glob("*.hdf5"))
    assert not list(tmp_path.rglob("*.partial"))


def test_inspect_refuses_an_empty_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a policy checkpoint" in refused(capsys, "inspect", "/dev/null")


@pytest.mark.parametrize("folder", [".", "records", "records/first"])
def test_inspect_names_the_command_for_recorded_trials(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = tmp_path / "records" / "first"
    trial.mkdir(parents=True)
    (trial / "first.mcap").touch()
    said = refused(capsys, "inspect", str(tmp_path / folder))
    assert f"`d2ppo trials show {trial if folder == 'records/first' else trial.parent}`" in said
