"""What is started, and with what: the launch package, its parameter files, and the processes of every scenario."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from d2ppo_core.checkpoint import read_policy, save_policy
from d2ppo_core.errors import UserError
from d2ppo_core.network_specs import SamplerSpec
from d2ppo_core.tasks import load_task, observation_spec
from d2ppo_ros import environment, graph, scenarios, up
from d2ppo_ros.parameters import build, table
from oracles import small_spec

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
LAUNCH, PACKAGE = ROOT / "launch", ROOT / "ros2_ws/src/d2ppo_ros"
PACKAGES = {"d2ppo_interfaces": ROOT / "ros2_ws/src/d2ppo_interfaces", "d2ppo_ros": PACKAGE, "d2ppo_bringup": LAUNCH}
PARAMETERS = sorted((LAUNCH / "params").glob("*.yaml"))
SCENARIOS = list(scenarios.SCENARIOS)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy's file as far as it is looked at here: for Lift, from pictures."""
    spec = small_spec(SamplerSpec()).model_copy(
        update={"task": "lift_image", "observation": observation_spec(load_task("lift_image"))}
    )
    save_policy(tmp_path / "it's a policy.safetensors", spec, {})
    return tmp_path / "it's a policy.safetensors"


def every_system(policy: Path) -> dict[str, graph.System]:
    """Each scenario with all that it may start."""
    words = {
        "sim": ["lockstep=true", "record=out"],
        "robot": ["trials=1", "record=out", "object_file=a", "cameras_file=b", "max_duration=5"],
        "record": ["raw=true"],
    }
    made = {
        name: graph.system(name, scenarios.parse(name, [f"checkpoint={policy}", *more])) for name, more in words.items()
    }
    return made | {
        "standin": graph.system("robot", scenarios.parse("robot", [f"checkpoint={policy}", "standin=true"]))
    }


def declared() -> dict[str, dict[str, type]]:
    """Of each node's module: the parameters that it declares, and the settings that each belongs to."""
    pytest.importorskip("rclpy")
    from d2ppo_ros import reference

    found = {name: {f.name: kind for kind in kinds for f in fields(kind)} for name, kinds in reference.NODES.items()}
    for name, more in reference.EXTRA.items():
        found[name] |= dict.fromkeys(more, object)
    return found


# --- what is started --------------------------------------------------------------------------------------------------


@pytest.mark.ros
def test_every_process_is_a_node_that_declares_what_it_is_given(policy: Path) -> None:
    known, started = declared(), set()
    for system in every_system(policy).values():
        names = [process.name for process in system.processes]
        assert len(set(names)) == len(names)
        for process in system.processes:
            node = process.module.removeprefix("d2ppo_ros.nodes.")
            assert callable(importlib.import_module(process.module).main)
            assert set(process.parameters) <= set(known[node]), process.name
            started.add(node)
    assert started == set(known), "a node that no scenario starts, or whose parameters are not in the reference"


def test_who_commands_is_stopped_before_who_must_hear_the_last_stop(policy: Path) -> None:
    systems = every_system(policy)
    order = [process.name for process in systems["sim"].processes]
    assert order == ["sim", "camera_robot0_eye_in_hand", "safety", "executor", "policy", "recorder", "trial", "trials"]
    robot = [process.name for process in systems["robot"].processes]
    assert robot == ["camera_robot0_eye_in_hand", "object_pose", "safety", "executor", "policy", "recorder", "trial",
                     "trials"]  # fmt: skip
    assert [process.name for process in systems["record"].processes] == ["recorder"]
    assert systems["sim"].spare("recorder") and not systems["record"].spare("recorder")


def test_a_robot_is_armed_by_a_person_and_watched_by_the_strict_limits(policy: Path) -> None:
    given_to = {p.name: p.parameters for p in every_system(policy)["robot"].processes}
    assert given_to["safety"]["profile"] == "robot" and given_to["safety"]["cameras"] == ["robot0_eye_in_hand"]
    assert given_to["trial"] == {"simulated": False, "arm": False, "disarm": False, "max_duration": 5.0}
    assert given_to["object_pose"]["task"] == "none"  # this policy sees pictures; the pose alone is published
    assert given_to["recorder"]["cameras"] == ["robot0_eye_in_hand"]


def test_nothing_starts_without_a_policy_or_with_what_is_not_there(policy: Path) -> None:
    for scenario in SCENARIOS:
        with pytest.raises(UserError, match="checkpoint=FILE"):
            graph.system(scenario, scenarios.parse(scenario, []))
    with pytest.raises(UserError, match="no such file"):
        graph.system("sim", scenarios.parse("sim", [f"checkpoint={policy}", "params=nowhere.yaml"]))
    for scenario, words, message in (
        ("moon", [], "choose one of sim, robot, record"), ("sim", ["trails=3"], "no option"),
        ("sim", ["executor=fast"], "choose one of receding"), ("robot", ["rate=1"], "from 20.0 to 1000.0"),
        ("sim", ["trials=many"], "no int"), ("robot", ["lockstep=true"], "no option"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=re.escape(message)):
            scenarios.parse(scenario, words)


def test_what_the_policy_alone_forbids_is_refused_before_anything_starts(policy: Path, tmp_path: Path) -> None:
    toy, _ = read_policy(policy)
    save_policy(tmp_path / "toy.safetensors", toy.model_copy(update={"task": "reach"}), {})
    for words, message in (
        ([f"checkpoint={tmp_path / 'toy.safetensors'}"], "'reach' is a toy without a robot"),
        ([f"checkpoint={policy}", "task=reach"], "'reach' is a toy without a robot"),
        ([f"checkpoint={policy}", "task=can_image"], "is a policy for task 'lift_image', not 'can_image'"),
        ([f"checkpoint={policy}", "executor=rtc"], "executor mode 'rtc'"),
    ):
        for scenario in ("sim", "robot"):
            with pytest.raises(UserError, match=re.escape(message)):
                graph.system(scenario, scenarios.parse(scenario, words))


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp"))))
def test_any_text_stays_that_text_in_yaml(text: str) -> None:
    assert yaml.safe_load(graph.yaml_of(text)) == text
    assert yaml.safe_load(graph.yaml_of([text, "y"])) == [text, "y"]


@pytest.mark.ros
def test_ros_reads_the_arguments_as_they_are_meant(policy: Path) -> None:
    rclpy = pytest.importorskip("rclpy")
    values: dict[str, Any] = {"a": "", "b": "1e3", "c": "it's", "d": True, "e": 0.5, "f": 3, "g": ["y", "no"], "h": "~"}
    process = graph.Process("odd", "d2ppo_ros.nodes.odd", values)
    arguments = ["--ros-args", *process.ros_arguments(graph.parameter_files("sim", ""))]
    context = rclpy.Context()
    rclpy.init(args=arguments, context=context)
    try:
        node = rclpy.create_node("x", context=context, automatically_declare_parameters_from_overrides=True)
        read = {name: node.get_parameter(name).value for name in values}
        assert node.get_name() == "odd" and read == values
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)


# --- the same from launch ---------------------------------------------------------------------------------------------


def test_the_plan_that_launch_asks_for_is_what_up_starts(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert graph.main(["sim", f"checkpoint={policy}", "record=out", "domain=7"]) == 0
    plan = json.loads(capsys.readouterr().out)
    system = graph.system("sim", scenarios.parse("sim", [f"checkpoint={policy}", "record=out", "domain=7"]))
    assert [node["arguments"] for node in plan["nodes"]] == [p.ros_arguments(system.files) for p in system.processes]
    assert [node["name"] for node in plan["nodes"] if node["spare"]] == ["recorder"]
    assert plan["environment"]["ROS_DOMAIN_ID"] == "7" and set(plan["environment"]) <= set(system.environment)
    assert "PATH" not in plan["environment"]  # launch has its own
    assert graph.main(["sim"]) == 2 and "checkpoint=FILE" in capsys.readouterr().err


def test_options_are_read_where_nothing_of_ours_is_installed() -> None:
    """ROS's own Python reads the launch arguments; torch, and even d2ppo_core, may live elsewhere."""
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"d2ppo_core", "d2ppo_sim", "torch", "numpy", "pydantic", "rclpy", "scipy"}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
from d2ppo_ros.parameters import default_of, table
from d2ppo_ros.scenarios import SCENARIOS
print(*(len(table(options)) for options in SCENARIOS.values()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(fields(options))) for options in scenarios.SCENARIOS.values()]


def test_there_is_a_launch_file_for_each_scenario() -> None:
    files = sorted(LAUNCH.glob("*.launch.py"))
    assert [path.name.removesuffix(".launch.py") for path in files] == sorted(SCENARIOS)
    for path in files:
        tree = ast.parse(path.read_text(), str(path))
        (made,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert made.name == "generate_launch_description"
        (call,) = [node for node in ast.walk(made) if isinstance(node, ast.Call)]
        assert ast.unparse(call) == f"description('{path.name.removesuffix('.launch.py')}')"


@pytest.mark.ros
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_launch_takes_the_same_options(scenario: str) -> None:
    pytest.importorskip("launch_ros")
    made = runpy.run_path(str(LAUNCH / f"{scenario}.launch.py"))["generate_launch_description"]()
    arguments = {argument.name: argument for argument in made.get_launch_arguments()}
    options = fields(scenarios.SCENARIOS[scenario])
    assert set(arguments) == {field.name for field in options} | {"python"}
    words = [f"{f.name}={''.join(part.text for part in arguments[f.name].default_value)}" for f in options]
    assert scenarios.parse(scenario, words) == scenarios.SCENARIOS[scenario]()


def test_help_names_every_option() -> None:
    said = up.usage()
    for scenario, options in scenarios.SCENARIOS.items():
        assert f"\n{scenario}: " in said
        assert all(f"  {name} " in said and why in said for name, _, _, why in table(options))


# --- parameter files --------------------------------------------------------------------------------------------------


def sections(path: Path) -> dict[str, dict[str, Any]]:
    return {name: body["ros__parameters"] for name, body in yaml.safe_load(path.read_text()).items()}


@pytest.mark.ros
@pytest.mark.parametrize("path", PARAMETERS, ids=lambda path: path.name)
def test_parameter_files_hold_only_what_their_nodes_declare(path: Path) -> None:
    known = declared()
    for section, values in sections(path).items():
        named = re.fullmatch(r"/\*\*(?:/(\w+))?", section)
        assert named, f"{section}: a node in any namespace is /**/NODE"
        nodes = [known[named[1]]] if named[1] else list(known.values())
        given: dict[type, dict[str, Any]] = {}  # what belongs together is checked together
        for name, value in values.items():
            owners = [node[name] for node in nodes if name in node]
            assert owners, f"{section} has no parameter {name}"
            for owner in owners:
                given.setdefault(owner, {})[name] = value
        for owner, own in given.items():
            build(owner, own, section)


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda path: path.name)
def test_parameter_files_mean_the_same_to_every_yaml_reader(path: Path) -> None:
    """YAML 1.1 takes a bare y, no or on for a truth value: texts are quoted, truth values written out."""
    parsed = list(yaml.parse(path.read_text()))
    scalars = [event for event in parsed if isinstance(event, yaml.ScalarEvent)]
    keys = {str(key) for values in sections(path).values() for key in values} | {"ros__parameters", *sections(path)}
    for scalar in scalars:
        plain = scalar.style is None and scalar.value not in keys
        assert not plain or re.fullmatch(r"true|false|-?\d+(\.\d+)?", scalar.value), f"quote {scalar.value}"
    assert not any(isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) for event in parsed)


def test_each_scenario_has_its_file() -> None:
    assert {path.stem for path in PARAMETERS} == {*SCENARIOS, "lockstep", "standin"}


# --- packages ---------------------------------------------------------------------------------------------------------


def manifest(name: str) -> tuple[ET.Element, set[str]]:
    root = ET.parse(PACKAGES[name] / "package.xml").getroot()
    return root, {element.text or "" for element in root if element.tag.endswith("depend")}


def imports(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    return found


def test_packages_list_what_they_use() -> None:
    for name in PACKAGES:
        root, _ = manifest(name)
        assert (root.findtext("name"), root.findtext("license")) == (name, "MIT") and root.get("format") == "3"
        assert root.findtext("version") == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    used = {n for n in imports(PACKAGE) if re.search(r"_(msgs|srvs|interfaces)$|^(rclpy|launch|launch_ros)$", n)}
    assert used and used <= manifest("d2ppo_ros")[1]
    assert imports(LAUNCH) - {"d2ppo_ros"} == set() and "d2ppo_ros" in manifest("d2ppo_bringup")[1]
    texts = [p.read_text() for kind in ("msg", "srv", "action") for p in PACKAGES["d2ppo_interfaces"].glob(f"{kind}/*")]
    foreign = {match for text in texts for match in re.findall(r"^(\w+)/\w+", text, re.M)}
    assert foreign <= manifest("d2ppo_interfaces")[1]


def test_colcon_installs_every_node_as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: told.update(options))
    monkeypatch.chdir(PACKAGE)
    runpy.run_path("setup.py")
    commands = dict(line.split(" = ") for line in told["entry_points"]["console_scripts"])
    nodes = {p.stem for p in (PACKAGE / "d2ppo_ros/nodes").glob("*.py") if "def main(" in p.read_text()}
    assert commands == {node: f"d2ppo_ros.nodes.{node}:main" for node in nodes}
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(told["packages"]) == {name for name in whole if name.split(".")[0] == "d2ppo_ros"}
    assert (PACKAGE / "resource/d2ppo_ros").exists() and told["name"] == "d2ppo_ros"
    assert "executable = /usr/bin/env python3" in (PACKAGE / "setup.cfg").read_text()


def test_parameter_files_are_found_from_ros_checkout_and_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert environment.share() == LAUNCH
    installed = tmp_path / "share/d2ppo_bringup"
    shutil.copytree(LAUNCH / "params", installed / "params")
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join(["/nowhere", str(tmp_path)]))
    assert environment.share() == installed
    monkeypatch.delenv("AMENT_PREFIX_PATH")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "lib/python/site-packages/d2ppo_ros/x.py"))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"data": str(tmp_path)})
    assert environment.share() == installed
    shutil.rmtree(installed)
    with pytest.raises(UserError, match="colcon"):
        environment.share()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    there = {p.name for pattern in data["share/d2ppo_bringup/params"] for p in ROOT.glob(pattern)}
    assert there == {path.name for path in (LAUNCH / "params").iterdir()}


@pytest.mark.ros
def test_the_table_of_parameters_is_up_to_date() -> None:
    pytest.importorskip("rclpy")
    from d2ppo_ros import reference

    page = ROOT / "docs/ros_parameters.md"
    assert page.read_text() == reference.markdown(), "run: python -m d2ppo_ros.reference > docs/ros_parameters.md"


@pytest.mark.slow
@pytest.mark.ros
def test_colcon_builds_the_workspace(tmp_path: Path) -> None:
    """All three packages, with the ROS that this interpreter has; then the parameter files are found in its index."""
    colcon = shutil.which("colcon", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not colcon:
        pytest.skip("colcon is not installed")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ament = os.environ.get("AMENT_PREFIX_PATH", sys.prefix)
    environment = {**os.environ, "PATH": path, "AMENT_PREFIX_PATH": ament, "CMAKE_PREFIX_PATH": ament}
    done = subprocess.run(
        [colcon, "--log-base", tmp_path / "log", "build", "--base-paths", ROOT / "ros2_ws/src", LAUNCH,
         "--build-base", tmp_path / "build", "--install-base", tmp_path / "install", "--cmake-args",
         "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={sys.executable}", "-DPython3_FIND_VIRTUALENV=ONLY"],
        env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    nodes = {p.name for p in (tmp_path / "install/d2ppo_ros/lib/d2ppo_ros").iterdir()}
    assert {"sim", "safety", "policy"} <= nodes
    script = (tmp_path / "install/d2ppo_ros/lib/d2ppo_ros/safety").read_text()
    assert script.startswith("#!/usr/bin/env python3\n")
    share = subprocess.run(
        ["bash", "-c", f". {tmp_path}/install/local_setup.bash; "
         "exec python -c 'from d2ppo_ros import graph; print(graph.share(), graph.__file__)'"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert all(str(tmp_path) in path for path in share)
