"""What is installed is what is here, pinned; and the houses import one another only in the allowed direction."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

from d2ppo_core.machine import SIMULATION, canonical, pinned

ROOT = Path(__file__).resolve().parents[2]
ROBOT = {"d2ppo_ros", "rclpy", "franky"}
HOUSES = {  # house -> (folder, what it must not import)
    "d2ppo_core": ("d2ppo_core", {"d2ppo_sim", "d2ppo_calibration", "robosuite", "mujoco"} | ROBOT),
    "d2ppo_sim": ("sim/d2ppo_sim", {"d2ppo_calibration"} | ROBOT),
    "d2ppo_ros": ("ros2_ws/src/d2ppo_ros/d2ppo_ros", {"robosuite", "mujoco"}),
    "d2ppo_calibration": ("calibration/d2ppo_calibration", {"d2ppo_sim", "robosuite"} | ROBOT),
}


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def imported(source: str) -> set[str]:
    """Top-level names of every absolute import in a module, those inside functions and by literal name included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                names.add(str(node.args[0].value))
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("house", HOUSES)
def test_imports_go_one_way(house: str) -> None:
    folder, forbidden = HOUSES[house]
    for path in sorted((ROOT / folder).rglob("*.py")):
        found = imported(path.read_text()) & forbidden
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_the_import_check_sees_every_form() -> None:
    source = "import a.b\ndef f():\n    from c.d import e\n    import_module('g.h')\nfrom . import i\nfrom .j import k"
    assert imported(source) == {"a", "c", "g"}


def test_core_imports_without_simulators() -> None:
    program = """
import importlib, pkgutil, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"robosuite", "mujoco", "d2ppo_sim", "d2ppo_calibration", "rclpy"}:
            raise ImportError(f"{name} is not for d2ppo_core")
sys.meta_path.insert(0, Blocker())
import d2ppo_core
for module in pkgutil.walk_packages(d2ppo_core.__path__, "d2ppo_core."):
    importlib.import_module(module.name)
    print(module.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "d2ppo_core.contract" in done.stdout.split()


def package_folders() -> dict[str, Path]:
    """Every package on disk: dotted name -> folder."""
    found = {}
    for house, (folder, _) in HOUSES.items():
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.parent.relative_to(ROOT / folder)
            found[".".join((house, *inner.parts))] = path.parent
    return found


def test_every_package_is_declared() -> None:
    assert set(settings()["tool"]["setuptools"]["packages"]) == set(package_folders())
    without = [name for name, folder in package_folders().items() if not (folder / "__init__.py").exists()]
    assert not without, f"no __init__.py in {without}"


@pytest.fixture(scope="module")
def wheel_contents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy (building leaves things behind) without the network, and unpacked."""
    copy, out, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "target"))
    declared = settings()["tool"]["setuptools"]
    for house in {name.split(".")[0] for name in declared["packages"]}:
        folder = declared["package-dir"][house]
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "launch", copy / "launch")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, copy],
        capture_output=True, text=True, check=False, timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_wheel_holds_every_file(wheel_contents: Path) -> None:
    """Configurations and compiled-on-first-use sources count: whatever lies in a package must be installed with it."""
    for house, folder in settings()["tool"]["setuptools"]["package-dir"].items():
        here = {p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob("*") if p.is_file() and _ours(p)}
        there = {p.relative_to(wheel_contents / house) for p in (wheel_contents / house).rglob("*") if p.is_file()}
        assert here - there == set(), f"in {folder} but not in the wheel"
    assert (wheel_contents / "d2ppo_core/conf/config.yaml").exists()
    files = {path.name for path in wheel_contents.rglob("share/d2ppo_bringup/params/*")}
    assert files == {path.name for path in (ROOT / "launch" / "params").iterdir()}


def _ours(path: Path) -> bool:
    return "__pycache__" not in path.parts and path.suffix not in (".partial", ".pyc")


def test_wheel_runs_away_from_the_checkout(wheel_contents: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(wheel_contents)}

    def python(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True,
                              text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(wheel_contents) in python("-c", "import d2ppo_core; print(d2ppo_core.__file__)")
    assert "usage: d2ppo" in python("-m", "d2ppo_core.cli", "--help")
    assert "groups to choose from" in python("-m", "d2ppo_core.cli", "pretrain", "--help")  # finds its conf/


def test_no_package_files_where_ros_or_pytest_would_trip() -> None:
    """A package `launch` would hide the one that ROS owns; packages under tests/ defeat importlib mode."""
    found = [path for folder in ("tests", "launch") for path in (ROOT / folder).rglob("__init__.py")]
    assert not found


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="runs in the .venv that `make setup` made")
def test_everything_installed_is_pinned() -> None:
    files = ("constraints.txt", "requirements-build.txt", "requirements-ros.txt")
    pins = {name: pin for file in files for name, pin in pinned(ROOT / file).items()}
    # Not all of sys.path: once imported, setuptools and Ray have put copies of their own there.
    for distribution in distributions(path=[sysconfig.get_path("purelib")]):
        name = canonical(distribution.metadata["Name"])
        if name.startswith("d2ppo") or re.match(r"nvidia-|cuda-|triton$", name):  # the CUDA build of torch pins its own
            continue
        if f"ros-{name}" in pins:  # the egg-info that a ROS wheel drops beside its own
            continue
        assert name in pins, f"{name} {distribution.version} is installed, but constraints.txt does not pin it"
        assert distribution.version.split("+")[0] == pins[name], f"{name}: constraints.txt pins another version"


def test_pins_agree_with_one_another() -> None:
    pins = pinned(ROOT / "constraints.txt")
    assert pinned(ROOT / "requirements-robosuite.txt")["robosuite"] == pins["robosuite"]
    assert {name: pins[name] for name in SIMULATION} == SIMULATION
    assert not {"pip", "setuptools", "wheel", "d2ppo"} & set(pins)
    unpinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines()
                if line.strip() and not line.startswith("#") and not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert not unpinned


def committed_text() -> list[Path]:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def test_no_committed_file_names_one_machine() -> None:
    """Folders of whoever wrote it, or the package servers they used, work nowhere else."""
    machine = re.compile(r"(?<![\w.~-])/(work|root|home/(?!(you|user|robot)\b)\w+|Users/\w+)/|\bfile:/{3}opt/")
    registry = re.compile(r"\b(pypi|pythonhosted|npmjs|deb\.debian|archive\.ubuntu)\.(org|net|com)\b", re.I)
    for path in committed_text():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            where = f"{path.relative_to(ROOT)}:{number}: {line}"
            assert not machine.search(line) and not registry.search(line), where
