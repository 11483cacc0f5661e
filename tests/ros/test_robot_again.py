"""Everything in `robot_rows` at a stand-in, 20 times each (`make test-faults`; D2PPO_TIMES: another number). It writes
what it measured (D2PPO_ROBOT_FAULTS, or runs/robot-faults.json) for the table in docs/robot.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("franky_sim", reason="there is no wheel of franky-sim for this machine")
pytest.importorskip("franky")
pytest.importorskip("pyrealsense2")
pytestmark = [pytest.mark.graph, pytest.mark.faults, pytest.mark.slow]  # timed by wall clocks: run by itself

from d2ppo_ros.records import SECOND  # noqa: E402
from d2ppo_ros.robot.driver import Phase  # noqa: E402
from d2ppo_ros.robot.pilot import standin  # noqa: E402
from fault_files import write_down  # noqa: E402
from robot_eyes import SeeingRig  # noqa: E402
from robot_guarded import GuardedRig, guarded_rig, how_it_stopped  # noqa: E402
from robot_rig import SIDEWAYS, robot_rig  # noqa: E402
from robot_rows import CAMERA_ROWS, CLIENT_DIES, DIES, HOLDS, ROWS, Row  # noqa: E402

HOST = f"127.0.{100 + os.getpid() % 100}.20"
TIMES = int(os.environ.get("D2PPO_TIMES", "20"))
MEASURED = Path(os.environ.get("D2PPO_ROBOT_FAULTS", "runs/robot-faults.json"))
STRAY = 0.002  # m that an arm may creep after it was stopped
STALLED = 0.05  # s: a cycle of the servo loop that comes so much late is the machine's doing


@pytest.fixture(scope="module")
def rig() -> Iterator[GuardedRig]:
    with guarded_rig(HOST) as made:
        yield made


@pytest.fixture(scope="module")
def seeing() -> Iterator[SeeingRig]:
    with guarded_rig(HOST.replace(".20", ".23"), SeeingRig) as made:
        yield made


def provoke(rig: GuardedRig, row: Row) -> dict[str, float]:
    """One time: under way, struck, what is measured, mended."""
    rig.guard(**dict(row.settings))
    rig.pressed = True if "operator_stop" in dict(row.settings) else None
    rig.arm()
    rig.move()
    time.sleep(0.3)  # well under way: some 4 cm/s
    rig.begin()
    speed, struck = rig.speed(), time.monotonic()
    row.strike(rig)
    if not row.rest:
        rig.wait(lambda: row.shown(rig))
        rig.wait(lambda: rig.speed() > 0.02)
        assert rig.driver.phase is Phase.DRIVING
        return {"speed": speed, "said": time.monotonic() - struck, "rest": 0.0, "distance": 0.0}
    said = row.said.split("|")
    try:
        rig.wait(lambda: any(words in rig.cause for words in said))
    except AssertionError:
        raise AssertionError(f"'{rig.cause}' does not say {row.said}") from None
    after = time.monotonic() - struck
    time.sleep(max(0.0, row.rest + 0.5 - after))
    stopped = rig.stopped()
    assert stopped.rest < row.rest, f"at rest after {stopped.rest:.3f} s of robot time, not within {row.rest} s"
    stays_stopped(rig)
    return asdict(stopped) | {"speed": speed, "said": after}


def stays_stopped(rig: GuardedRig) -> None:
    """The executor goes on commanding, and the arm does not move."""
    rig.begin()
    rig.walk, rig.late, rig.action = None, 0.0, SIDEWAYS
    time.sleep(0.3)
    assert rig.driver.phase is not Phase.DRIVING or rig.driver.stopped
    assert rig.stopped().distance < STRAY


def counted(rig: GuardedRig, row: Row, patience: int = 10) -> tuple[dict[str, float], int]:
    """As expected, or it fails. And how many were not counted, because the machine itself stood still meanwhile."""
    for again in range(patience + 1):
        rig.driver.late = 0
        try:
            return provoke(rig, row), again
        except AssertionError:
            if again == patience or rig.driver.late < STALLED * SECOND or "stands still" in row.name:
                raise
        finally:
            rig.mend()
    raise RuntimeError("unreachable")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_comes_to_rest_in_time_again_and_again(rig: GuardedRig, row: Row) -> None:
    many_times(rig, row)


@pytest.mark.parametrize("row", CAMERA_ROWS, ids=lambda row: row.name)
def test_what_befalls_a_camera_stops_the_arm_again_and_again(seeing: SeeingRig, row: Row) -> None:
    many_times(seeing, row)


def many_times(rig: GuardedRig, row: Row) -> None:
    rows: list[dict[str, float]] = []
    for _ in range(TIMES):
        found, again = counted(rig, row)
        rows.append(found | {"not_counted": again})
        write_down(MEASURED, row.name, rows)


def test_a_robot_that_dies_and_comes_back() -> None:
    rows: list[dict[str, float]] = []
    host = HOST.replace(".20", ".21")
    with ExitStack() as stack:
        rig = stack.enter_context(robot_rig(host, stack.enter_context(standin(host=host)), grip_timeout=2.0))
        for _ in range(TIMES):
            rig.arm()
            rig.move()
            speed, before = rig.speed(), rig.driver.clients[0].connections
            subprocess.run(["pkill", "-9", "-f", f"host={host}"], check=True)
            said = rig.wait(lambda: "silent" in rig.fault or "connection" in rig.fault)
            rig.control = stack.enter_context(standin(host=host))
            back = rig.wait(lambda before=before: rig.driver.clients[0].connections > before and not rig.fault, 15.0)
            time.sleep(0.3)  # safety goes on saying ARMED, the executor goes on commanding
            assert rig.driver.phase is not Phase.DRIVING and rig.speed() < 0.005
            rows.append({"speed": speed, "said": said, "back": back, "not_counted": 0})
            write_down(MEASURED, DIES, rows)


def test_a_client_that_dies() -> None:
    script = (
        "import franky, time\n"
        f"r = franky.Robot('{HOST.replace('.20', '.22')}', realtime_config=franky.RealtimeConfig.Ignore)\n"
        "r.recover_from_errors()\n"
        "t = franky.CartesianImpedanceTracker(r)\n"
        "t.set_target(r.state.O_T_EE * franky.Affine([0.3, 0, 0]))\n"
        "print('driving', flush=True)\ntime.sleep(60)"
    )
    rows: list[dict[str, float]] = []
    with standin(host=HOST.replace(".20", ".22")) as control:
        for _ in range(TIMES):
            client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
            assert client.stdout is not None and client.stdout.readline() == "driving\n"
            time.sleep(0.1)
            control.ask("record")
            client.kill()
            client.wait()
            time.sleep(0.5)
            stopped = how_it_stopped(np.array(control.ask("trace")["rows"]))
            assert stopped.rest < HOLDS and control.ask("state")["mode"] != "move"
            rows.append({"speed": stopped.speed, "said": 0.0, "rest": stopped.rest, "distance": stopped.distance,
                         "not_counted": 0})  # fmt: skip
            write_down(MEASURED, CLIENT_DIES, rows)
