"""`d2ppo trials run` and what it refuses before anything is written or started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2ppo_core import cli
from d2ppo_core.errors import UserError
from d2ppo_ros.trials import leash
from d2ppo_ros.trials.journal import NAME
from d2ppo_ros.trials.policies import again, find
from support import d2ppo
from trials_support import tiny_policy


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two policies of one task, as training runs leave them."""
    for name, horizon in (("a", 4), ("b", 6)):
        (tmp_path / name).mkdir()
        tiny_policy(tmp_path / name / "policy.safetensors", horizon=horizon, task="lift")
    return tmp_path / "a", tmp_path / "b"


def test_policies_are_found_by_folder_or_file(two: tuple[Path, Path]) -> None:
    a, b = two
    found = find(f"{a}, {b}/policy.safetensors")
    assert [policy.name for policy in found] == ["a", "b"]
    assert again([policy.about for policy in found]) == found
    (a / "policy.safetensors").write_bytes((b / "policy.safetensors").read_bytes())
    with pytest.raises(UserError, match="is not the file that the session began with"):
        again([policy.about for policy in found])


def test_what_cannot_be_compared_is_refused_and_nothing_is_written(
    tmp_path: Path, two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two
    tiny_policy(tmp_path / "seeing.safetensors", cameras=True, task="lift")
    (tmp_path / "text.safetensors").write_text("no policy")
    for words, said in (
        ([f"policies={a},{tmp_path}/none"], "there is no such file or folder"),
        ([f"policies={a},{tmp_path}/text.safetensors"], "is not a policy checkpoint"),
        ([f"policies={a},{a}/policy.safetensors"], "are the same policy; give it once"),
        ([f"policies={a},{tmp_path}/seeing.safetensors"], "differ in cameras"),
        (["episodes=3"], "no policies are given"),
        (["policies=,"], "no policies are given"),
        ([f"policies={a},{b}", "first_seed=4294967290", "episodes=10"], "choose a smaller one"),
        ([f"policies={a},{b}", "params=none.yaml"], "params=none.yaml: there is no such file"),
    ):
        pytest.importorskip("rclpy") if "params=none.yaml" in words else None
        assert cli.main(["trials", "run", f"run_dir={tmp_path}/session", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not (tmp_path / "session").exists()


@pytest.mark.ros
def test_a_mode_that_one_of_them_cannot_is_refused(
    tmp_path: Path, two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rclpy")
    words = [f"policies={two[0]},{two[1]}", "executor=async", f"run_dir={tmp_path}/session"]
    assert cli.main(["trials", "run", *words]) == 2
    assert "executor mode 'async'" in capsys.readouterr().err
    assert not (tmp_path / "session").exists()


def test_a_session_is_neither_overwritten_nor_resumed_where_there_is_none(
    tmp_path: Path, two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"event": "session", "format": 1, "seed": 1, "starts": [1], "blind": True, "policies": [], "options": {}}
    (tmp_path / NAME).write_text(json.dumps(event) + "\n")
    before = (tmp_path / NAME).read_bytes()
    assert cli.main(["trials", "run", f"policies={two[0]},{two[1]}", f"run_dir={tmp_path}"]) == 2
    assert "go on with resume=true, or choose another run_dir" in capsys.readouterr().err
    assert (tmp_path / NAME).read_bytes() == before
    assert cli.main(["trials", "run", f"run_dir={tmp_path}/none", "resume=true"]) == 2
    assert "no policies are given" in capsys.readouterr().err


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trials", "run", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("policies", "episodes", "blind", "resume=true", "--terminal", "max_duration", "system=robot", "void"):
        assert word in text
    assert d2ppo("trials", "--help").stdout.count("compare policies") == 1


def test_a_leashed_program_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Even by kill -9: the nodes of a session must not go on without the program in which they are stopped."""
    script = (
        "import os, subprocess, sys, time\n"
        f"leashed = [sys.executable, '-I', '-S', {leash.__file__!r}, str(os.getpid()), '/bin/sleep', '60']\n"
        "p = subprocess.Popen(leashed)\n"
        "print(p.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = Path("/proc") / parent.stdout.readline().strip()
    deadline = time.monotonic() + 10.0
    while b"sleep" not in (child / "cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    done = subprocess.run([sys.executable, leash.__file__, str(os.getpid() + 1), "/bin/true"], check=False)
    assert done.returncode == 1  # who started it has gone already
