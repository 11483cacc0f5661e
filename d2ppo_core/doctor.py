"""`d2ppo doctor`: what this machine can do, and how to mend what it cannot."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import machine, probes
from .cli import Parser, listing, registered
from .errors import UserError, choose
from .files import write_json
from .machine import BROKEN, MISSING, OK, WARNING, Row

CORE_MODULES = (
    "numpy",
    "scipy.spatial.transform",
    "h5py",
    "safetensors",
    "torch",
    "pydantic",
    "hydra",
    "tensorboard",
    "rich",
    "gymnasium",
    "matplotlib",
)
EXTRA_MODULES = {"mujoco": "mujoco", "robosuite": "robosuite", "cv2": "opencv-python", "numba": "numba"}
NO_GPU = "none (CPU only)"
# MuJoCo's name -> ours, how to get it, what to do without it while the other works.
_BACKENDS = {
    "egl": ("EGL", "apt-get install libegl1 libgl1-mesa-dri", "or set MUJOCO_GL=osmesa, which works"),
    "osmesa": ("OSMesa", "apt-get install libosmesa6", "not needed while EGL works"),
}
_SHOWN = {OK: ("OK", "green"), WARNING: ("warning", "yellow"), MISSING: ("missing", "red"), BROKEN: ("broken", "red")}


def main(arguments: list[str]) -> int:
    """Print the findings, or a house's (entry-point group `d2ppo.doctors`); 0, or 1 where something needed fails."""
    others = registered("d2ppo.doctors", "d2ppo doctor")
    if arguments and arguments[0] in others:
        return others[arguments[0]].run(arguments[1:])
    if arguments and not arguments[0].startswith("-"):
        raise UserError(f"there is no `d2ppo doctor {arguments[0]}`{choose(arguments[0], others)} (or give no name)")
    parser = Parser(
        prog="d2ppo doctor", description="What this machine can do, and how to mend what it cannot.",
        epilog="d2ppo doctor NAME looks at more:\n" + listing(others),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--run-dir", metavar="DIR", help="also write them to DIR/doctor.json")
    parser.add_argument("--picture", metavar="FILE.png", help="instead: write the picture that a policy gets")
    parser.add_argument("--task", default="lift_image", help="whose cameras --picture shows (default lift_image)")
    options = parser.parse_args(arguments)
    if options.picture:
        return picture(options.task, Path(options.picture).absolute(), options.json)
    report = examine(Path(options.run_dir or "."))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    if options.run_dir:
        path = Path(options.run_dir).absolute() / "doctor.json"
        write_json(path, report)
        print(path, file=sys.stderr if options.json else sys.stdout)
    return 0 if report["ok"] else 1


def conclude(rows: list[Row], options: argparse.Namespace, file: str, width: int) -> int:
    """Print a house's findings, names in `width` columns, or write them as `--json` and `--run-dir` say; exit code."""
    report = {"ok": fit(rows), "rows": [vars(row) for row in rows]}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for row in rows:
            print(f"{row.state:<8} {row.name:<{width}} {row.found}" + (f"\n{'':<8} -> {row.fix}" if row.fix else ""))
    if options.run_dir:
        write_json(Path(options.run_dir) / file, report)
    return 0 if report["ok"] else 1


def fit(rows: list[Row]) -> bool:
    """Whether nothing that is needed fails."""
    return not any(row.state in (MISSING, BROKEN) for row in rows)


def examine(folder: Path) -> dict[str, Any]:
    """All findings: `ok`, what the machine `can` do, and the `rows` (name, state, found, fix)."""
    have = machine.installed()
    extras = [module for module, name in EXTRA_MODULES.items() if name in have]
    torch = probes.Probe(probes.TORCH)  # the probes run side by side while we look at the rest
    imports = probes.Probe(probes.IMPORTS, *CORE_MODULES, *extras, MUJOCO_GL="disable")
    backends = _BACKENDS if "mujoco" in have else ()
    pictures = {name: probes.Probe(probes.RENDER, MUJOCO_GL=name) for name in backends}
    pins = machine.pinned(Path(__file__).resolve().parent.parent / "constraints.txt")
    before = [machine.python_row(), machine.requirements_row(), machine.pins_row(have, pins)]
    after = [
        machine.compiler_row(),
        machine.disk_row(folder.absolute()),
        machine.memory_row(),
        machine.ros_row(have, os.environ),
    ]
    errors = probes.import_errors(imports)
    simulation = _with_imports(machine.simulation_row(have), errors, "mujoco", "robosuite", "numba")
    opencv = _with_imports(machine.opencv_row(have), errors, "cv2")
    rows = [
        *before,
        _imports_row(errors),
        simulation,
        opencv,
        machine.macros_row(),
        *_torch_rows(torch),
        *_picture_rows(pictures),
        *after,
    ]
    return _report(rows)


def picture(task: str, path: Path, as_json: bool) -> int:
    """Write what the task's cameras see at a reset, through the same calls as in evaluation, and say which way up."""
    probe = probes.Probe("import runpy; runpy.run_module('d2ppo_core.picture', run_name='__main__')", task, str(path))
    lines, failure = probe.answer(timeout=180)
    if failure or not lines:
        raise UserError(f"no picture was made: {failure or 'no answer'}")
    found = lines[-1]
    print(json.dumps(found, indent=2) if as_json else "\n".join([*found["lines"], found["file"]]))
    return 0


def _report(rows: list[Row]) -> dict[str, Any]:
    state = {row.name: row.state for row in rows}
    learns = state["libraries"] == OK and state["Python"] != BROKEN and state["d2ppo"] != BROKEN
    can = {
        "learn": learns,
        "simulate": learns and state["simulation"] == OK,
        "render": OK in (state["EGL"], state["OSMesa"]),
        "compile": state["g++"] == OK,
        "gpu": any(row.name == "GPU" and row.found != NO_GPU and row.state == OK for row in rows),
    }
    return {
        "ok": fit(rows),
        "can": can,
        "rows": [vars(row) for row in rows],
    }


def _imports_row(errors: Mapping[str, str]) -> Row:
    """Do the libraries that learning needs import? A wrong numpy or a missing system library shows here."""
    bad = {name: error for name, error in errors.items() if name in CORE_MODULES}
    if not bad:
        return Row("libraries", OK, "all import: " + ", ".join(name.split(".")[0] for name in CORE_MODULES))
    absent = all("ModuleNotFoundError" in error for error in bad.values())
    found = "; ".join(f"{name}: {error}" for name, error in bad.items())
    return Row("libraries", MISSING if absent else BROKEN, found, "run `rm -rf .venv && make setup`")


def _with_imports(row: Row, errors: Mapping[str, str], *modules: str) -> Row:
    """The same row, or a broken one where a module that is installed does not import."""
    bad = "; ".join(f"{name} does not import: {errors[name]}" for name in modules if name in errors)
    if not bad or row.state == BROKEN:
        return row
    if ".so" in bad:  # a system library, as libGL.so.1 for OpenCV
        return Row(row.name, BROKEN, f"{row.found}; {bad}", "apt-get install libgl1 libglib2.0-0 libegl1")
    return Row(row.name, BROKEN, f"{row.found}; {bad}", "run `rm -rf .venv && make setup`")


def _torch_rows(probe: probes.Probe) -> list[Row]:
    """Threads and GPUs, as torch sees them."""
    lines, failure = probe.answer(timeout=120)
    cores = machine.cores()
    if failure or not lines:
        broken = Row("torch", BROKEN, failure or "no answer", "run `rm -rf .venv && make setup`")
        return [Row("CPU", OK, f"{cores} cores"), broken, Row("GPU", OK, NO_GPU)]
    seen = lines[-1]
    found = f"{cores} cores, torch uses {seen['threads']} threads"
    if seen["threads"] > cores:
        fix = f"threads beyond the cores only fight over them: set OMP_NUM_THREADS={cores}, or give threads={cores}"
        return [Row("CPU", WARNING, found, fix), _gpu_row(seen)]
    return [Row("CPU", OK, found), _gpu_row(seen)]


def _gpu_row(seen: Mapping[str, Any]) -> Row:
    if seen["gpus"]:
        return Row("GPU", OK, f"{', '.join(seen['gpus'])} (CUDA {seen['built_for_cuda']})")
    if not Path("/proc/driver/nvidia/version").exists():
        return Row("GPU", OK, NO_GPU)
    if seen["built_for_cuda"]:
        return Row(
            "GPU",
            WARNING,
            "an NVIDIA driver is here, but torch finds no GPU",
            f"update the driver to one that knows CUDA {seen['built_for_cuda']}, and check CUDA_VISIBLE_DEVICES",
        )
    return Row(
        "GPU",
        WARNING,
        "an NVIDIA driver is here, but torch is a CPU build",
        "install the CUDA build of the same torch version from an index that has it",
    )


def _picture_rows(pictures: Mapping[str, probes.Probe]) -> list[Row]:
    """Was a picture really made, and by which driver? One of the two ways is enough."""
    results: dict[str, tuple[bool, str]] = {}
    for name in _BACKENDS:
        lines, failure = pictures[name].answer() if name in pictures else ([], "mujoco is not installed")
        good = bool(not failure and lines and lines[-1]["bright"] > 0)
        results[name] = good, (lines[-1]["renderer"] or "works") if good else failure or "the picture was black"
    any_good = any(good for good, _ in results.values())
    rows = []
    for name, (title, fix, instead) in _BACKENDS.items():
        good, found = results[name]
        advice = f"{fix}; {instead if any_good else 'films and camera images need one of the two'}"
        rows.append(Row(title, OK, found) if good else Row(title, WARNING, found, advice))
    return rows


def _print(report: Mapping[str, Any]) -> None:
    rows = [Row(**row) for row in report["rows"]]
    try:
        _print_table(rows)
    except ImportError:  # rich is missing, as the table says
        for row in rows:
            print(f"{_SHOWN[row.state][0]:<8} {row.name:<16} {row.found}")
    for row in rows:
        if row.fix:
            print(f"{_SHOWN[row.state][0]}: {row.name}: {row.fix}")
    words = {
        "learn": "learn",
        "simulate": "simulate robosuite's tasks",
        "render": "make pictures",
        "compile": "compile the fast simulation",
        "gpu": "use a GPU",
    }
    for title, wanted in (("can", True), ("cannot", False)):
        listed = [text for key, text in words.items() if report["can"][key] is wanted]
        if listed:
            print(f"This machine {title}: {', '.join(listed)}.")


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="d2ppo doctor")
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    for row in rows:
        word, colour = _SHOWN[row.state]
        table.add_row(row.name, Text(word, style=colour), Text(row.found))
    Console().print(table)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"d2ppo doctor: {error}")
