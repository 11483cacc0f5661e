"""What people stumbled over: records that were cut short, long names of topics, and outcomes that were overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from d2ppo_core import cli
from d2ppo_core.contract import ActionSpec
from d2ppo_core.errors import UserError
from d2ppo_core.statistics import wilson
from d2ppo_ros import graph
from d2ppo_ros.recording.writer import Topic, TrialWriter
from d2ppo_ros.safety.monitor import SafetyMonitor
from d2ppo_ros.safety.settings import SafetySettings
from d2ppo_ros.scenarios import SimulationOptions
from trials_support import OURS, TOPICS, command, episode, safety

LONG = Topic("/a_robot_with_a_name/camera/robot0_eye_in_hand/camera_info", "sensor_msgs/msg/CameraInfo")


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ({"ended": "the recorder was shut down"}, "unknown (the recorder was shut down before the trial's end)"),
        ({"ended": "stopped"}, "success: no;"),
        ({"ended": "stopped", "success": True, "judged": "success", "notes": "slow"},
         "success: yes (as a person judged; slow)"),
        ({"ended": "stopped", "success": False, "judged": "void", "void": "lamp out", "notes": ""},
         "success: no (as a person judged; void: lamp out)"),
    ],
)  # fmt: skip
def test_how_a_trial_went(tmp_path: Path, capsys: pytest.CaptureFixture[str], outcome: dict, said: str) -> None:
    TrialWriter(tmp_path / "t", TOPICS, {"trial": "t"}).close(outcome)
    assert cli.main(["trials", "show", str(tmp_path / "t")]) == 0
    assert said in capsys.readouterr().out


def test_topics_stay_whole_in_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    TrialWriter(tmp_path / "t", [LONG], {"trial": "t"}).close({"ended": "stopped"})
    assert cli.main(["trials", "show", str(tmp_path / "t")]) == 0
    assert LONG.name in capsys.readouterr().out


def test_a_folder_of_trials_is_a_line_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {"a": {"success": True}, "b": {"success": False}, "c": {"void": "lamp out", "judged": "void"}}
    for name, outcome in outcomes.items():
        TrialWriter(tmp_path / name, TOPICS, {"trial": f"lift-{name}", "seed": 7}).close({"ended": "stopped"} | outcome)
    assert cli.main(["trials", "show", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert all(f"lift-{name}" in told for name in outcomes)
    assert f"success {wilson(1, 2)} (1/2 trials; 1 of unknown outcome or void are not counted)" in told
    assert cli.main(["trials", "show", str(tmp_path), "--json"]) == 0
    assert [about["trial"] for about in json.loads(capsys.readouterr().out)] == ["lift-a", "lift-b", "lift-c"]
    assert cli.main(["trials", "replay", str(tmp_path)]) == 2
    assert "is no recorded trial, but holds 3; give one, such as" in capsys.readouterr().err
    assert cli.main(["trials", "show", str(tmp_path / "none")]) == 2


def test_what_safety_changed_is_of_this_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It begins with the last trial's number, and counts from zero whenever it is armed; here twice."""
    writer = TrialWriter(tmp_path / "t", TOPICS, {"trial": "t"})
    for stamp, (state, changed) in enumerate([(1, 90), (2, 0), (2, 3), (4, 5), (1, 5), (2, 0), (2, 2), (1, 2)]):
        writer.write("/safety/state", stamp, safety(stamp, state, changed, check="stop" * (state == 4)))
    writer.close({"ended": "stopped", "success": True})
    assert cli.main(["trials", "show", str(tmp_path / "t"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["safety"]["changed"] == 5 + 2
    states = [change["state"] for change in told["safety"]["states"]]
    assert states == ["READY", "ARMED", "STOPPED", "READY", "ARMED", "READY"]


@pytest.mark.parametrize(("numbers", "missing"), [((900, 0, 901, 0, 0, 902), 0), ((900, 0, 902), 1), ((0, 0), 0)])
def test_what_safety_commands_by_itself_leaves_no_gap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], numbers: tuple[int, ...], missing: int
) -> None:
    own = SafetyMonitor(SafetySettings(), ActionSpec(), 0)
    own.stop(0, "emergency stop")
    assert own.tick(0, 0).sequence == 0
    sent = Topic("/command/sent", OURS + "Command")
    writer = TrialWriter(tmp_path / "t", [sent], {"trial": "t"})
    for stamp, number in enumerate(numbers):
        writer.write(sent.name, stamp, command(stamp, number, np.zeros(7)))
    writer.close({"ended": "stopped"})
    assert cli.main(["trials", "show", str(tmp_path / "t"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["topics"][sent.name].get("missing") or 0, told["lossy"]) == (missing, bool(missing))


@pytest.mark.parametrize(("topic", "missing"), [("requested", 6), ("sent", 6), ("applied", None)])
def test_a_robot_need_not_obey_every_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], topic: str, missing: int | None
) -> None:
    """The simulator obeys nothing that says to keep on."""
    written = Topic(f"/command/{topic}", OURS + "Command")
    writer = TrialWriter(tmp_path / "t", [written], {"trial": "t"})
    for stamp, number in enumerate((900, 907)):
        writer.write(written.name, stamp, command(stamp, number, np.zeros(7)))
    writer.close({"ended": "stopped"})
    assert cli.main(["trials", "show", str(tmp_path / "t"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["topics"][written.name]["missing"], told["lossy"]) == (missing, bool(missing))


def test_control_steps_end_with_the_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The simulator counts on while the record waits for the arm to be disarmed."""
    writer = TrialWriter(tmp_path / "t", [Topic("/episode", OURS + "EpisodeState")], {"trial": "t"})
    for step in range(9):
        writer.write("/episode", step, episode(step, step, step >= 5, 7))
    writer.close({"ended": "stopped"})
    assert cli.main(["trials", "show", str(tmp_path / "t"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["episode"]["control_steps"] == 5


def test_the_outcomes_of_another_run_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "trials.json").write_text("{}")
    with pytest.raises(UserError, match="earlier run; choose another run_dir"):
        graph.trials(SimulationOptions(checkpoint="p", run_dir=str(tmp_path)))
    assert graph.trials(SimulationOptions(run_dir=str(tmp_path / "new"))).parameters["out"].endswith("new/trials.json")
