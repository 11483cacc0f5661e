"""What was measured of a cell reaches the node that must know it: serial numbers, calibrations, latencies."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2ppo_core.checkpoint import save_policy
from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError
from d2ppo_core.network_specs import SamplerSpec
from d2ppo_core.tasks import load_task, observation_spec
from d2ppo_ros import cell, graph, scenarios
from oracles import small_spec

NAME = "robot0_eye_in_hand"
LATENCY = "latency: {camera: 0.071, robot_action: 0.04, robot_observation: 0.004, gripper_action: -0.01}\n"
CAMERAS = [Camera(name=name, height=96, width=96, field_of_view=fov) for name, fov in (("a", 45.0), ("b", 75.0))]


@pytest.fixture
def started(tmp_path: Path):
    """Parameters of each process of a scenario with the task's pixel policy."""
    seen = observation_spec(load_task("lift_image"))
    spec = small_spec(SamplerSpec()).model_copy(update={"task": "lift_image", "observation": seen})
    save_policy(tmp_path / "policy.safetensors", spec, {})

    def made(scenario: str, *words: str) -> dict[str, dict]:
        options = scenarios.parse(scenario, [f"checkpoint={tmp_path / 'policy.safetensors'}", *words])
        return {process.name: process.parameters for process in graph.system(scenario, options).processes}

    return made


def test_named_cameras_are_opened_with_what_was_measured_of_them(started, tmp_path: Path) -> None:
    assert "realsense" not in started("robot")
    (tmp_path / "latency.yaml").write_text(LATENCY)
    (tmp_path / f"{NAME}.json").write_text("{}")
    given = started("robot", f"realsense={NAME}=0123", f"calibrations={tmp_path}", f"latency={tmp_path}/latency.yaml")
    assert given["realsense"] == {"cameras": [NAME], "serials": ["0123"], "device": "real", "latency": 0.071}
    assert given[f"camera_{NAME}"]["calibration"] == str(tmp_path / f"{NAME}.json")
    assert given["executor"]["action_latency"] == 0.04 and "action_latency" not in started("robot")["executor"]
    assert given[f"camera_{NAME}"]["reliable"] is True and "reliable" not in started("robot")[f"camera_{NAME}"]
    assert list(given).index("realsense") < list(given).index(f"camera_{NAME}")
    for words, says in (
        (["realsense=front=0123"], "give each its serial number"), ([f"realsense={NAME}"], f"{NAME}=1234"),
        ([f"calibrations={tmp_path / 'none'}"], f"there is no {NAME}.json"),
        ([f"realsense={NAME}=1", "latency=none.yaml"], "none.yaml"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            started("robot", *words)


def test_the_simulator_is_as_late_as_the_robot_was(started, tmp_path: Path) -> None:
    path = tmp_path / "latency.yaml"
    path.write_text(LATENCY)
    sim = started("sim", f"latency={path}")["sim"]
    assert (sim["image_latency"], sim["state_latency"]) == (0.071, 0.004)
    with pytest.raises(UserError, match="leave one of them out"):
        started("sim", f"latency={path}", "lockstep=true")
    for text in ("latency: {camra: 0.1}", "latency: {camera: .nan}", "latency: {camera: x}", "[]", "a: [", "{}"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"latency\.yaml"):
            cell.read_latencies(path)
    path.write_text(LATENCY)
    assert cell.read_latencies(path).chosen(a="gripper_action", b="robot_acting") == {"a": 0.0}
    assert cell.read_latencies("").seconds == {}


def test_stand_ins_show_what_the_contract_states(started) -> None:
    given = started("robot", "standin=true")
    assert given["standin_cameras"]["cameras"] == given["realsense"]["cameras"] == [NAME]
    assert given["realsense"]["device"] == "software" and given["realsense"]["fields_of_view"] == [75.0]
    (one,) = cell.software_cameras(CAMERAS)
    assert (one["cameras"], one["fields_of_view"], one["width"]) == (["a", "b"], [45.0, 75.0], 96)
    assert len(cell.software_cameras([CAMERAS[0], CAMERAS[1].model_copy(update={"height": 48})])) == 2
