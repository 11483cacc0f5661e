"""Deltas through the driver move an arm as they did in training: the same action, the simulator and the stand-in."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

pytest.importorskip("franky_sim", reason="there is no wheel of franky-sim for this machine")
pytestmark = [pytest.mark.graph, pytest.mark.sim]

from d2ppo_core.contract import ActionSpec  # noqa: E402
from d2ppo_core.tasks import load_task  # noqa: E402
from d2ppo_ros.robot.driver import Driver, robot_of  # noqa: E402
from d2ppo_ros.robot.pilot import PatientClock, Pilot, standin  # noqa: E402
from d2ppo_ros.robot.settings import ArmSettings  # noqa: E402
from d2ppo_sim.robot import SimulatedRobot  # noqa: E402

HOST, STEP = f"127.0.{100 + os.getpid() % 100}.20", 0.05
BASE = [-0.56, 0.0, 0.912]
ACTION = np.array([0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0])


def simulated(robot: SimulatedRobot) -> float:
    """m/s once it is under way."""
    places = [robot.arms()[0].position[1]]
    for _ in range(30):
        robot.step(ACTION)
        places.append(robot.arms()[0].position[1])
    return (places[30] - places[10]) / (20 * STEP)


def driven(driver: Driver) -> float:
    """The same through the driver, on the robot's clock."""
    pilot = Pilot(driver)
    pilot.take()
    client, told, places = driver.clients[0], -1, []
    begin = client.reading.time
    while (now := client.reading.time - begin) < 30 * STEP:
        if int(now / STEP) > told:
            told = int(now / STEP)
            pilot.delta(ACTION)
        places.append((now, driver.frames[0].site(client.reading.ee)[0][1]))
        pilot.keep()
        pilot.cycle()
        time.sleep(0.004)
    times, where = np.array(places).T
    return (np.interp(30 * STEP, times, where) - np.interp(10 * STEP, times, where)) / (20 * STEP)


def test_the_same_observation_and_the_same_speed_as_in_the_simulator() -> None:
    robot = SimulatedRobot(load_task("lift"))
    robot.reset(3)
    settings = ArmSettings(hosts=[HOST], robot_model="fr3", base_position=BASE, box_low=[], box_high=[], clearance=0.0,
                           tilt=0.0)  # fmt: skip
    with standin(f"base={','.join(map(str, BASE))}", host=HOST) as control:
        driver = robot_of(settings, ActionSpec(limits="sim"), PatientClock())
        driver.start()
        try:
            end = time.monotonic() + 10.0
            while driver.state(driver.readings(), 0, 0) is None:
                assert time.monotonic() < end, driver.fault(time.monotonic_ns())
                time.sleep(0.01)
            control.ask("place", q=robot.arms()[0].q.tolist())
            time.sleep(0.1)
            found = driver.state(driver.readings(), 0, 0).values
            for name in ("robot0_eef_pos", "robot0_eef_quat"):
                assert np.allclose(found[name], robot.values[name], atol=3e-4), name  # both hold the pose softly
            fingers = "robot0_gripper_qpos"
            assert np.allclose(found[fingers], robot.values[fingers], atol=1e-3)
            assert driven(driver) == pytest.approx(simulated(robot), rel=0.25)
        finally:
            driver.close()
            robot.close()
