"""Everything in `robot_rows.ROWS` at a stand-in, once here (the quick ones) and 20 times by `make test-faults`, which
writes what it measured (D2PPO_ROBOT_FAULTS, or runs/robot-faults.json) for the table in docs/robot.md.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("franky_sim", reason="there is no wheel of franky-sim for this machine")
pytest.importorskip("franky")
pytestmark = [pytest.mark.graph, pytest.mark.faults, pytest.mark.slow]  # timed by wall clocks: run by itself

from d2ppo_core.files import write_json  # noqa: E402
from d2ppo_ros.records import SECOND  # noqa: E402
from d2ppo_ros.robot.driver import Phase  # noqa: E402
from robot_guarded import GuardedRig, guarded_rig  # noqa: E402
from robot_rig import SIDEWAYS  # noqa: E402
from robot_rows import ROWS, Row  # noqa: E402

HOST = f"127.0.{100 + os.getpid() % 100}.20"
TIMES = int(os.environ.get("D2PPO_TIMES", "20"))
STRAY = 0.002  # m that an arm may creep after it was stopped
STALLED = 0.05  # s: a cycle of the servo loop that comes so much late is the machine's doing


@pytest.fixture(scope="module")
def rig() -> Iterator[GuardedRig]:
    with guarded_rig(HOST) as made:
        yield made


def provoke(rig: GuardedRig, row: Row) -> dict[str, float]:
    """One time: under way, struck, what is measured, mended."""
    rig.guard(**dict(row.settings))
    rig.pressed = True if row.settings else None
    rig.arm()
    rig.move()
    time.sleep(0.3)  # well under way: some 4 cm/s
    given_up = rig.driver.hands[0].given_up
    rig.begin()
    speed, struck = rig.speed(), time.monotonic()
    row.strike(rig)
    if not row.rest:
        rig.wait(lambda: rig.driver.hands[0].given_up > given_up)
        rig.wait(lambda: rig.speed() > 0.02)
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
    return {"speed": speed, "said": after, **asdict(stopped)}


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
    rows: list[dict[str, float]] = []
    for _ in range(TIMES):
        found, again = counted(rig, row)
        rows.append(found | {"not_counted": again})
        write_down(row.name, rows)


def write_down(name: str, rows: list[dict[str, float]]) -> None:
    """Add what was measured to the file."""
    path = Path(os.environ.get("D2PPO_ROBOT_FAULTS", "runs/robot-faults.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    plain = [{key: float(np.round(value, 4)) for key, value in row.items()} for row in rows]
    write_json(path, known | {name: {"load": os.getloadavg()[0], "cores": os.cpu_count(), "rows": plain}})
