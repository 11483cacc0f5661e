"""What people stumbled over: records that were cut short, long names of topics, and outcomes that were overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2ppo_core import cli
from d2ppo_core.errors import UserError
from d2ppo_ros import graph
from d2ppo_ros.recording.writer import Topic, TrialWriter
from d2ppo_ros.scenarios import SimulationOptions
from trials_support import TOPICS

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


def test_the_outcomes_of_another_run_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "trials.json").write_text("{}")
    with pytest.raises(UserError, match="earlier run; choose another run_dir"):
        graph.trials(SimulationOptions(checkpoint="p", run_dir=str(tmp_path)))
    assert graph.trials(SimulationOptions(run_dir=str(tmp_path / "new"))).parameters["out"].endswith("new/trials.json")
