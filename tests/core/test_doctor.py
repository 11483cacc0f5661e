"""`d2ppo doctor`: each finding in isolation, and the command as a whole in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from d2ppo_core import doctor, machine, probes
from d2ppo_core.errors import UserError
from d2ppo_core.machine import BROKEN, MISSING, OK, WARNING

TESTED = {"robosuite": "1.4.1", "mujoco": "3.3.7", "opencv-python": "4.14.0.94"}
NAMES = {"Python", "d2ppo", "pinned versions", "libraries", "simulation", "OpenCV", "robosuite macros", "CPU", "GPU",
         "EGL", "OSMesa", "g++", "disk", "memory", "ROS"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "d2ppo_core.doctor", *arguments], env=os.environ | environment,
                          capture_output=True, text=True, check=False, timeout=120)


def fake_distribution(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_whole_report_with_no_compiler_and_ros_mixed(tmp_path: Path) -> None:
    """One process for both: a missing compiler is only a warning, ROS from wheels beside a sourced ROS is refused."""
    fake_distribution(tmp_path / "site", "ros-rclpy", "7.1.6")
    (tmp_path / "empty").mkdir()
    done = run("--json", "--run-dir", str(tmp_path / "run"), PATH=str(tmp_path / "empty"),
               PYTHONPATH=str(tmp_path / "site"), ROS_DISTRO="jazzy")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == NAMES and not report["ok"]
    assert rows["ROS"]["state"] == BROKEN and "sources no ROS" in rows["ROS"]["fix"]
    assert rows["g++"]["state"] == WARNING and "numba" in rows["g++"]["fix"]
    assert not report["can"]["compile"]
    assert rows["libraries"]["state"] == OK and report["can"]["learn"]
    assert all(row["fix"] for row in rows.values() if row["state"] != OK), "a finding without a fix"
    assert json.loads((tmp_path / "run" / "doctor.json").read_text()) == report
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["doctor.json"]


def test_table_and_exit_code_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    row = machine.Row("EGL", WARNING, "libEGL.so.1 is missing", "apt-get install libegl1")
    can = dict.fromkeys(("learn", "simulate", "render", "compile", "gpu"), True)
    report = {"ok": True, "can": can, "rows": [vars(row)]}
    monkeypatch.setattr(doctor, "examine", lambda folder: report)
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    assert "libEGL.so.1 is missing" in printed and "warning: EGL: apt-get install libegl1" in printed


def test_bad_option_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"unrecognized arguments: --jsn \(.*--help"):
        doctor.main(["--jsn"])


def test_rendering_is_reported_not_fatal() -> None:
    lines, failure = probes.Probe(probes.RENDER, MUJOCO_GL="no-such-backend").answer()
    assert not lines and failure
    assert [row.state for row in doctor._picture_rows({})] == [WARNING, WARNING]


def test_a_probe_that_dies_names_the_module(tmp_path: Path) -> None:
    (tmp_path / "crashes.py").write_text("import os; print('{not json', flush=True); os.kill(os.getpid(), 11)")
    (tmp_path / "links.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    probe = probes.Probe(probes.IMPORTS, "json", "links", "absent", "crashes", PYTHONPATH=str(tmp_path))
    errors = probes.import_errors(probe)
    assert set(errors) == {"links", "absent", "crashes"}
    assert "libGL.so.1" in errors["links"] and "ModuleNotFoundError" in errors["absent"]
    assert "SIGSEGV" in errors["crashes"]
    row = doctor._with_imports(machine.opencv_row(TESTED), {"cv2": errors["links"]}, "cv2")
    assert row.state == BROKEN and "apt-get install libgl1" in row.fix


def test_libraries_missing_or_broken() -> None:
    assert doctor._imports_row({"cv2": "ImportError: x"}).state == OK  # not of the core
    assert doctor._imports_row({"h5py": "ModuleNotFoundError: No module named 'h5py'"}).state == MISSING
    assert doctor._imports_row({"torch": "ImportError: numpy.core.multiarray failed to import"}).state == BROKEN


@pytest.mark.parametrize(("have", "state"), [
    (TESTED, OK), ({}, WARNING), ({**TESTED, "mujoco": "4.0.0"}, BROKEN), ({"mujoco": "3.3.7"}, BROKEN),
    ({"robosuite": "1.5.2", "mujoco": "3.3.7"}, BROKEN),
])
def test_simulation_pair(have: dict[str, str], state: str) -> None:
    assert machine.simulation_row(have).state == state


@pytest.mark.parametrize(("have", "state"), [
    (TESTED, OK), ({}, WARNING), ({"opencv-python": "5.0.1"}, BROKEN),
    ({**TESTED, "opencv-python-headless": "4.14.0.94"}, BROKEN),
])
def test_opencv(have: dict[str, str], state: str) -> None:
    assert machine.opencv_row(have).state == state


@pytest.mark.parametrize(("have", "environment", "state"), [
    ({}, {}, OK), ({"ros-rclpy": "7.1.6"}, {}, OK), ({}, {"ROS_DISTRO": "jazzy"}, OK),
    ({"ros-rclpy": "7.1.6"}, {"AMENT_PREFIX_PATH": "/opt/ros/jazzy"}, BROKEN),
    ({"ros-rclpy": "7.1.6"}, {"AMENT_PREFIX_PATH": "/somewhere/ws/install"}, OK),
])
def test_ros_mix(have: dict[str, str], environment: dict[str, str], state: str) -> None:
    assert machine.ros_row(have, environment).state == state


def test_pinned_versions(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# a comment\nTorch==2.13.0\npydantic_core==2.50.4\n")
    pins = machine.pinned(tmp_path / "constraints.txt")
    assert pins == {"torch": "2.13.0", "pydantic-core": "2.50.4"}
    assert machine.pins_row({"torch": "2.13.0+cpu"}, pins).state == OK  # a local label is the same version
    assert machine.pins_row({"torch": "2.14.0"}, pins).state == WARNING
    assert machine.pins_row({"torch": "2.14.0"}, machine.pinned(tmp_path / "absent.txt")).state == OK


def test_unmet_requirement_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    have = machine.installed()
    monkeypatch.setattr(machine, "installed", lambda: {**have, "hydra-core": "1.1.0"})
    row = machine.requirements_row()
    assert row.state == BROKEN and "hydra-core" in row.found


def test_compiler_that_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'cannot execute cc1plus' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    row = machine.compiler_row()
    assert row.state == WARNING and "cc1plus" in row.found


def test_bare_interpreter(tmp_path: Path) -> None:
    """Where nothing is installed the doctor still says so: -I and -S leave only the standard library."""
    archive = tmp_path / "core.zip"  # a zip also shows that it needs no files beside it
    with zipfile.ZipFile(archive, "w") as packed:
        for path in Path(doctor.__file__).parent.glob("*.py"):
            packed.write(path, f"d2ppo_core/{path.name}")
    program = (
        f"import sys; sys.path.insert(0, {str(archive)!r}); from d2ppo_core import doctor, probes\n"
        "doctor.CORE_MODULES, probes.TORCH = ('no_such_library',), 'import no_such_library'\n"  # not isolated
        "sys.exit(doctor.main([]))"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "missing  libraries" in done.stdout and "run `rm -rf .venv && make setup`" in done.stdout
