"""`d2ppo up robot standin=true`: the whole robot side in its processes, with an arm that is not there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("franky_sim", reason="there is no wheel of franky-sim for this machine")
pytestmark = [pytest.mark.ros, pytest.mark.graph]

from d2ppo_ros import graph, topics  # noqa: E402
from d2ppo_ros.records import State  # noqa: E402
from d2ppo_ros.scenarios import parse  # noqa: E402
from ros_observer import Observer, wait  # noqa: E402
from ros_rig import drifting_policy, free_domain  # noqa: E402


def test_which_processes_drive_arms(tmp_path: Path) -> None:
    policy = drifting_policy(tmp_path / "policy.safetensors")
    made = graph.system("robot", parse("robot", [f"checkpoint={policy}", "standin=true"]))
    names = [process.name for process in made.processes]
    assert names[:2] == ["standin_arm", "arm"] and "sim" not in names
    assert made.files[-1].name == "standin.yaml"
    trial = made.processes[names.index("trial")].parameters
    assert "standin_stage" in names and trial == {"simulated": True, "arm": False, "disarm": True}
    real = graph.system("robot", parse("robot", [f"checkpoint={policy}", "hosts=172.16.0.2"]))
    arm = next(process for process in real.processes if process.name == "arm")
    assert arm.parameters["hosts"] == ["172.16.0.2"] and arm.parameters["limits"] == "robot"
    trial = next(process for process in real.processes if process.name == "trial")
    assert trial.parameters == {"simulated": False, "arm": False, "disarm": False}
    assert "arm" not in [p.name for p in graph.system("robot", parse("robot", [f"checkpoint={policy}"])).processes]


def test_the_stand_in_comes_up_ready_and_is_armed(tmp_path: Path) -> None:
    policy, log = drifting_policy(tmp_path / "policy.safetensors"), tmp_path / "up.log"
    with free_domain() as domain, open(log, "w", encoding="utf-8") as out:
        words = ["-m", "d2ppo_core.cli", "up", "robot", f"checkpoint={policy}", "standin=true", "any_limits=true",
                 f"domain={domain}"]  # fmt: skip
        up = subprocess.Popen([sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        observer = Observer(domain)
        try:
            def armed() -> bool:
                assert up.poll() is None, log.read_text()
                time.sleep(0.05)
                return observer.state is State.READY and observer.call(topics.ARM_SAFETY)[0]

            assert wait(armed, 60.0), log.read_text()
        finally:
            observer.close()
            up.terminate()
            up.wait(60.0)
    assert "every arm can be driven" in log.read_text()
