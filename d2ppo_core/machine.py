"""What `d2ppo doctor` looks at that needs no other process: interpreter, versions, compiler, disk, memory, ROS.

Standard library only (packaging where it is there): this must still answer on a machine where little else works.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from importlib.util import find_spec
from pathlib import Path

OK, WARNING, MISSING, BROKEN = "ok", "warning", "missing", "broken"

SIMULATION = {"robosuite": "1.4.1", "mujoco": "3.3.7"}
"""The pair that works: a newer mujoco breaks this robosuite, and 1.5's first observation after a reset is wrong."""


@dataclass(frozen=True)
class Row:
    """One finding. `missing` and `broken` mean that something needed does not work; `warning`, that we do with less."""

    name: str
    state: str
    found: str
    fix: str = ""


def canonical(name: str) -> str:
    """A distribution's name as package indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Version of every installed distribution."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:  # a half-removed package has none
            found.setdefault(canonical(name), distribution.version)
    return found


def pinned(path: Path) -> dict[str, str]:
    """The pins of a constraints file; empty where there is no such file (an installed wheel has none)."""
    if not path.exists():
        return {}
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pins = [line.split("==", 1) for line in lines if "==" in line]
    return {canonical(name): pin.strip() for name, pin in pins}


def python_row() -> Row:
    """Which interpreter, and for what it is good."""
    number = sys.version_info[:2]
    found = f"{sys.version.split()[0]} ({sys.executable})"
    if number in ((3, 11), (3, 12)):
        return Row("Python", OK, found)
    if number < (3, 10):
        return Row("Python", BROKEN, found, "use Python 3.11 or 3.12: PYTHON=python3.11 make setup")
    why = "3.10 is for inference on a robot only" if number == (3, 10) else "not tried with this version"
    return Row("Python", WARNING, f"{found}: {why}", "to train, use Python 3.11 or 3.12: PYTHON=python3.11 make setup")


def pins_row(have: Mapping[str, str], pins: Mapping[str, str]) -> Row:
    """Are the installed versions the ones that were tested together?"""
    if not pins:
        return Row("pinned versions", OK, "no constraints.txt beside this installation; nothing to compare with")
    other = [
        f"{name} {have[name]} (tested: {pin})"
        for name, pin in sorted(pins.items())
        if name in have and have[name].split("+")[0] != pin
    ]
    if other:
        return Row(
            "pinned versions",
            WARNING,
            "not as tested: " + ", ".join(other),
            "`rm -rf .venv && make setup` installs the tested versions",
        )
    return Row("pinned versions", OK, f"{sum(name in have for name in pins)} of {len(pins)} installed, all as tested")


def requirements_row() -> Row:
    """Does what is installed satisfy what the package itself declares (without extras)?"""
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(text) for text in requires("d2ppo") or []]
    except PackageNotFoundError:
        return Row("d2ppo", WARNING, "runs from a folder, not installed", "run `make setup` or `pip install -e .`")
    except ImportError:
        return Row("d2ppo", BROKEN, "the package `packaging` is missing", "run `make setup`")
    have = installed()
    bad = [
        f"{want} (found {have.get(canonical(want.name), 'none')})"
        for want in wanted
        if (want.marker is None or want.marker.evaluate({"extra": ""}))
        and not want.specifier.contains(have.get(canonical(want.name), "0"), prereleases=True)
    ]
    if bad:
        return Row("d2ppo", BROKEN, f"{version('d2ppo')}; needs " + ", ".join(bad), "run `make setup`")
    return Row("d2ppo", OK, version("d2ppo"))


def simulation_row(have: Mapping[str, str]) -> Row:
    """robosuite and mujoco are there, and are the pair that works."""
    found = ", ".join(f"{name} {have.get(name, 'not installed')}" for name in SIMULATION)
    if not any(name in have for name in SIMULATION):
        return Row(
            "simulation",
            WARNING,
            found,
            "run `make setup`; without it a policy can be pre-trained and served, "
            "but not fine-tuned or evaluated in robosuite",
        )
    if any(have.get(name) != wanted for name, wanted in SIMULATION.items()):
        wanted = " and ".join(f"{name} {number}" for name, number in SIMULATION.items())
        return Row("simulation", BROKEN, found, f"only {wanted} work together: run `make setup`")
    return Row("simulation", OK, found)


def opencv_row(have: Mapping[str, str]) -> Row:
    """Exactly one wheel may own `cv2`, and from 5.0 on it has no hand-eye calibration."""
    wheels = sorted(name for name in have if name.startswith("opencv-"))
    found = ", ".join(f"{name} {have[name]}" for name in wheels) or "not installed"
    if len(wheels) > 1:
        return Row(
            "OpenCV",
            BROKEN,
            found,
            "they overwrite one another's files: "
            f"`pip uninstall -y {' '.join(wheels)}`, then `rm -rf .venv && make setup`",
        )
    if wheels and int(have[wheels[0]].split(".")[0]) >= 5:
        return Row("OpenCV", BROKEN, found, "version 5 has no hand-eye functions: pip install 'opencv-python>=4.8,<5'")
    return Row("OpenCV", OK if wheels else WARNING, found, "" if wheels else "run `make setup`; pictures need it")


def macros_row() -> Row:
    """robosuite reads settings, the time step among them, from a file of the user's; we do not let it."""
    spec = find_spec("robosuite")
    if spec is None or not spec.origin:
        return Row("robosuite macros", OK, "no robosuite here")
    private = Path(spec.origin).with_name("macros_private.py")
    if private.exists():
        return Row("robosuite macros", OK, f"{private} is there, but not used: physics must not depend on the machine")
    return Row("robosuite macros", OK, "stock")


def compiler_row() -> Row:
    """Really compile a shared library with g++."""
    program = shutil.which("g++")
    fix = "apt-get install g++; without it numba compiles the fast simulation, half a minute instead of seconds"
    if program is None:
        return Row("g++", WARNING, "not found", fix)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
        source.write_text('#include <cmath>\nextern "C" double probe(double x) { return std::sqrt(x); }\n')
        try:
            done = subprocess.run(
                [program, "-O2", "-shared", "-fPIC", "-o", library, source],
                text=True,
                timeout=60,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Row("g++", WARNING, f"{program} does not run: {error}", fix)
        if done.returncode or not library.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return Row("g++", WARNING, f"{program} cannot compile: {last}", fix)
    return Row("g++", OK, f"{program} compiles")


def cores() -> int:
    """CPU cores this process may use: its affinity, and a container's quota where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return count


def disk_row(folder: Path) -> Row:
    """Room for runs, where they will be written."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    found = f"{free:.1f} GiB free at {folder}"
    if free < 0.5:
        return Row("disk", BROKEN, found, "free some space, or choose another run_dir")
    if free < 5:
        return Row("disk", WARNING, found, "free some space: long runs with films need 5 GiB or more")
    return Row("disk", OK, found)


def memory_row() -> Row:
    """Memory that programs may still take."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) / 2**20  # type: ignore[index]
    except (OSError, TypeError):
        return Row("memory", OK, "unknown on this system")
    fine = free >= 4
    return Row(
        "memory",
        OK if fine else WARNING,
        f"{free:.1f} GiB available",
        "" if fine else "use fewer environments and workers: rollout.envs, rollout.workers, evaluation.envs",
    )


def ros_mixture(have: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """What is wrong where ROS from wheels meets ROS from the system, which crash or fall silent; empty: nothing."""
    sourced = _sourced(environment)
    if "ros-rclpy" in have and sourced:
        return f"ROS wheels (ros-rclpy {have['ros-rclpy']}) and a sourced installation ({sourced})"
    return ""


def _sourced(environment: Mapping[str, str]) -> str:
    in_path = "/opt/ros" in environment.get("AMENT_PREFIX_PATH", "")
    return environment.get("ROS_DISTRO", "") or ("/opt/ros" if in_path else "")


MIXTURE_FIX = "use one: open a shell that sources no ROS setup file, or make a .venv without the ROS wheels"


def ros_row(have: Mapping[str, str], environment: Mapping[str, str]) -> Row:
    """Which ROS there is."""
    mixture, sourced = ros_mixture(have, environment), _sourced(environment)
    if mixture:
        return Row("ROS", BROKEN, mixture, MIXTURE_FIX)
    if "ros-rclpy" in have:
        return Row("ROS", OK, f"from wheels: ros-rclpy {have['ros-rclpy']}")
    return Row("ROS", OK, f"sourced: {sourced}" if sourced else "none (not needed for learning)")
