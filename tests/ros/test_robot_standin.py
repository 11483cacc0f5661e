"""The driver as it is, through the real client library, against a stand-in that misbehaves on request."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("franky_sim", reason="there is no wheel of franky-sim for this machine")
pytest.importorskip("franky")
pytestmark = pytest.mark.graph  # timed by wall clocks: run by itself

from d2ppo_core.errors import UserError  # noqa: E402
from d2ppo_ros.records import State  # noqa: E402
from d2ppo_ros.robot.driver import Phase  # noqa: E402
from d2ppo_ros.robot.limits import TABLE  # noqa: E402
from d2ppo_ros.robot.pilot import standin  # noqa: E402
from d2ppo_ros.standin.control import Control  # noqa: E402
from d2ppo_ros.standin.wire import ERRORS  # noqa: E402
from robot_rig import RobotRig, robot_rig  # noqa: E402

HOST = f"127.0.{100 + os.getpid() % 100}"  # one network a test process


@pytest.fixture(scope="module")
def shared() -> Iterator[RobotRig]:
    with robot_rig(f"{HOST}.1", grip_timeout=2.0) as rig:
        yield rig


@pytest.fixture
def rig(shared: RobotRig) -> Iterator[RobotRig]:
    """As after unpacking: idle, connected, nothing wrong."""
    yield shared
    shared.take_out()
    shared.disarm()
    shared.wait(lambda: shared.driver.clients[0].reading is not None and "connection" not in shared.fault)
    if shared.fault:
        shared.driver.recover()
    shared.wait(lambda: not shared.fault)


def test_every_dynamic_limit_is_set_to_a_share_of_the_models_own(rig: RobotRig) -> None:
    rig.wait(lambda: not rig.fault)
    client = rig.driver.clients[0]
    for name, value in client.limits.items():
        largest = np.array(getattr(client._robot, f"{name}_limit").max)
        assert np.allclose(value, np.minimum(0.3 * np.array(getattr(TABLE["fr3"], name)), largest))
        assert np.allclose(getattr(client._robot, f"{name}_limit").get(), value)


def test_it_moves_holds_and_lets_go(rig: RobotRig) -> None:
    rig.arm()
    rig.move()
    rig.action = None  # silence of commands: held after 0.1 s, latched after 0.3 s, let go after 1 s
    assert rig.at_rest() < 1.0
    rig.wait(lambda: rig.driver.stopped == "no commands", 1.0)
    rig.wait(lambda: rig.driver.phase is Phase.IDLE, 3.0)
    assert rig.control.ask("state")["mode"] == "idle"
    rig.action = np.zeros(7)
    time.sleep(0.2)
    assert rig.driver.phase is Phase.IDLE  # nobody has armed it anew
    rig.arm()


def test_silence_of_safety_stops_it_without_ros(rig: RobotRig) -> None:
    rig.arm()
    rig.move()
    rig.state = None
    assert rig.wait(lambda: rig.driver.stopped) < 0.8
    assert rig.at_rest() < 1.0
    assert rig.driver.stopped == "safety is silent"


@pytest.mark.parametrize("error", ["cartesian_reflex", "joint_velocity_violation", "power_limit_violation"])
def test_a_reflex_stops_it_until_a_person_recovers_it(rig: RobotRig, error: str) -> None:
    rig.arm()
    rig.move()
    rig.control.ask("reflex", error=error)
    assert rig.wait(lambda: error in rig.fault) < 0.3
    assert rig.at_rest() < 0.5
    rig.wait(lambda: rig.driver.phase is Phase.IDLE)
    rig.state = State.READY
    time.sleep(0.1)
    rig.state = State.ARMED  # armed anew, but not recovered
    time.sleep(0.3)
    assert rig.driver.phase is Phase.IDLE and error in rig.fault
    assert rig.driver.recover() == ""
    rig.arm()


def test_a_user_stop_and_a_robot_that_wants_somebody_to_come(rig: RobotRig) -> None:
    rig.arm()
    rig.move()
    rig.control.ask("user_stop")
    rig.wait(lambda: "UserStopped" in rig.fault, 0.5)
    rig.at_rest()
    rig.control.ask("user_stop", on=False)
    rig.wait(lambda: not rig.fault)
    rig.arm()
    rig.control.ask("recovery", answer="manual")
    rig.control.ask("reflex")
    rig.wait(lambda: "cartesian_reflex" in rig.fault)
    assert "manual error recovery required" in rig.driver.recover()


def test_forces_are_measured_and_end_the_motion_inside_the_robots_loop(rig: RobotRig) -> None:
    rig.arm()
    rig.control.ask("force", wrench=[0, 0, -12.0, 0, 0, 0], seconds=0.6)
    driver = rig.driver
    rig.wait(lambda: driver.arms(driver.readings(), lambda at: at, time.monotonic_ns())[0].wrench[2] < -11.0, 0.5)
    assert rig.driver.phase is Phase.DRIVING
    time.sleep(0.7)
    rig.control.ask("force", wrench=[0, 37.0, 0, 0, 0, 0], seconds=0.3)  # over ours, below the robot's own
    rig.wait(lambda: rig.driver.phase is not Phase.DRIVING, 3.0)  # ramps its torques down, then ends
    assert not rig.control.ask("state")["errors"]


def test_a_silent_robot_is_noticed_and_the_client_built_anew(rig: RobotRig) -> None:
    rig.arm()
    rig.move()
    before = rig.driver.clients[0].connections
    rig.control.ask("silence", seconds=1.6)
    assert rig.wait(lambda: "silent" in rig.fault) < 0.6
    rig.wait(lambda: rig.driver.clients[0].connections > before, 10.0)
    rig.wait(lambda: "communication_constraints_violation" in rig.fault)  # what it did when nobody answered it
    assert rig.driver.recover() == "" and not rig.fault
    assert rig.driver.phase is not Phase.DRIVING and rig.driver.stopped  # a person arms it


def test_a_dropped_connection_is_made_anew(rig: RobotRig) -> None:
    rig.wait(lambda: not rig.fault)
    before = rig.driver.clients[0].connections
    rig.control.ask("deaf")
    rig.control.ask("drop")
    rig.wait(lambda: "hangs" in rig.fault, 10.0)  # nobody answers
    rig.control.ask("deaf", on=False)
    rig.wait(lambda: rig.driver.clients[0].connections > before and not rig.fault, 10.0)
    rig.arm()


def test_a_robot_of_another_version_is_answered_with_what_to_install(rig: RobotRig) -> None:
    rig.wait(lambda: not rig.fault)
    rig.control.ask("version", version=5)
    rig.control.ask("drop")
    rig.wait(lambda: "make robot ROBOT=panda" in rig.fault, 10.0)
    rig.control.ask("version", version=7)
    rig.wait(lambda: "by-robot-server-version/7/" in rig.fault, 10.0)


def test_commands_that_come_too_late_stop_it(rig: RobotRig) -> None:
    rig.arm()
    rig.control.ask("success", rate=0.93)
    rig.wait(lambda: "93%" in rig.driver.clients[0].warning, 3.0)
    assert rig.driver.phase is Phase.DRIVING
    rig.control.ask("success", rate=0.5)
    rig.wait(lambda: "came in time" in rig.driver.stopped, 3.0)


def test_the_hand_takes_the_latest_command_and_a_stuck_one_stops_nobody(rig: RobotRig) -> None:
    rig.arm()
    hand, closed = rig.driver.hands[0], np.array([0, 0, 0, 0, 0, 0, 1.0])
    rig.action = closed
    rig.wait(lambda: hand.state and hand.state.width < 0.005 and not hand._choice.busy)
    rig.control.ask("gripper", stuck=True)
    before = hand.sent
    for _ in range(10):  # toggles faster than it may
        rig.action = -rig.action
        time.sleep(0.1)
    assert 1 <= hand.sent - before <= 3
    assert rig.driver.phase is Phase.DRIVING and not rig.fault
    rig.action = -closed
    rig.control.ask("gripper", stuck=False)
    rig.wait(lambda: hand.state.width > 0.07, 8.0)


def test_a_goal_far_away_is_walked_to_within_the_limits(rig: RobotRig) -> None:
    rig.arm()
    fastest, end = 0.0, time.monotonic() + 0.5
    rig.action = np.array([0, 0, 1.0, 0, 0, 0, 0])  # full scale: 1 m/s, where 0.25 are allowed
    while time.monotonic() < end:
        fastest = max(fastest, rig.speed())
        time.sleep(0.002)
    rig.action = np.zeros(7)
    assert 0.02 < fastest < 0.35 and not rig.fault


def test_the_errors_have_the_protocols_order(rig: RobotRig) -> None:
    rig.wait(lambda: not rig.fault)
    robot = rig.driver.clients[0]._robot
    for error in ERRORS:
        rig.control.ask("reflex", error=error)
        rig.wait(lambda: rig.control.ask("state")["errors"])
        rig.wait(lambda e=error: [name for name in ERRORS if getattr(robot.state.current_errors, name)] == [e], 1.0)
        assert rig.driver.recover() == ""


@pytest.fixture(scope="module")
def pair() -> Iterator[Control]:
    with standin("base=0,0.6,0,0,-0.6,0", host=f"{HOST}.8,{HOST}.9") as control:
        yield control


def test_two_arms_move_and_stop_together(pair: Control) -> None:
    with robot_rig(f"{HOST}.8,{HOST}.9", pair, base_position=[0, 0.6, 0, 0, -0.6, 0]) as rig:
        rig.arm()
        before = rig.driver.state(rig.driver.readings(), 0, 0).values
        rig.move()
        rig.wait(lambda: rig.speed(1) > 0.02)
        after = rig.driver.state(rig.driver.readings(), 0, 0).values
        for number in range(2):
            assert after[f"robot{number}_eef_pos"][1] > before[f"robot{number}_eef_pos"][1]
            assert after[f"robot{number}_gripper_qpos"].shape == (2,)
        assert np.isclose(before["robot0_eef_pos"][1] - before["robot1_eef_pos"][1], 1.2, atol=0.01)
        rig.control.ask("reflex", arm=1)
        rig.wait(lambda: rig.speed(0) < 0.005 and rig.speed(1) < 0.005, 2.0)
        assert rig.driver.phase is not Phase.DRIVING and "cartesian_reflex" in rig.fault
        assert rig.driver.recover() == ""


def test_a_client_that_is_killed_leaves_an_arm_that_stops_and_takes_the_next_one(pair: Control) -> None:
    script = (
        "import franky, time\n"
        f"r = franky.Robot('{HOST}.8', realtime_config=franky.RealtimeConfig.Ignore)\n"
        "r.recover_from_errors()\n"
        "t = franky.CartesianImpedanceTracker(r)\nprint('driving', flush=True)\ntime.sleep(60)"
    )
    for _ in range(2):
        client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert client.stdout.readline() == "driving\n"
        end = time.monotonic() + 3.0
        while pair.ask("state")["mode"] != "move":
            assert time.monotonic() < end
        client.kill()
        client.wait()
        end = time.monotonic() + 3.0
        while pair.ask("state")["mode"] == "move":
            assert time.monotonic() < end
        assert np.abs(pair.ask("state")["dq"]).max() < 0.01


def test_what_the_stand_in_refuses(pair: Control) -> None:
    for request in ({"do": "nothing"}, {"do": "reflex", "error": "x"}, {"do": "force", "wrench": [1]},
                    {"do": "state", "arm": 3}, {"do": "cube"}):  # fmt: skip
        with pytest.raises(UserError):
            pair.ask(request.pop("do"), **request)
