"""The stand-in's stage: trials begin where the simulator's would, and an arm that is driven is left alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytestmark = [pytest.mark.graph, pytest.mark.sim]  # timed by wall clocks: run by itself
pytest.importorskip("franky_sim", reason="there is no wheel of franky-sim for this machine")
rclpy = pytest.importorskip("rclpy")
pytest.importorskip("d2ppo_interfaces")
pytest.importorskip("d2ppo_sim.robosuite_env")  # not robosuite itself: the OpenGL backend is not chosen yet

from d2ppo_interfaces.srv import StartTrial  # noqa: E402

from d2ppo_core.errors import UserError  # noqa: E402
from d2ppo_ros import cell  # noqa: E402
from d2ppo_ros.nodes.standin_stage import StandinStageNode  # noqa: E402
from d2ppo_ros.robot.pilot import standin  # noqa: E402
from d2ppo_ros.standin.control import Control, ControlServer  # noqa: E402
from native_support import native, seed_of  # noqa: E402
from robot_rig import robot_rig  # noqa: E402

HOST = f"127.0.{100 + os.getpid() % 100}.9"
LATER = 1409  # a port at which nothing listens yet
BASE = cell.simulated_bases(1)[0]


@pytest.fixture(scope="module")
def control() -> Iterator[Control]:
    base = ",".join(map(str, BASE))
    with standin(f"base={base}", f"table={cell.SIMULATED_TABLE}", "cube=true", host=HOST) as door:
        yield door


@pytest.fixture
def stage(control: Control) -> Iterator[StandinStageNode]:
    host, port = control._socket.getpeername()
    rclpy.init(args=["test", "--ros-args", "-p", f"control:={host}:{port}", "-p", "patience:=0.5"])
    node = StandinStageNode()
    yield node
    node.close()
    node.destroy_node()
    rclpy.try_shutdown()


def test_a_stand_in_may_begin_to_listen_later() -> None:
    """Launched together, the stage may be there first."""
    with ThreadPoolExecutor() as pool:
        reaching = pool.submit(Control, HOST, LATER, patience=10.0)
        time.sleep(0.3)
        assert not reaching.done()
        server = ControlServer(HOST, LATER, lambda request: {})
        reaching.result().close()
        server.close()
    with pytest.raises(UserError, match="no stand-in listens"):
        Control(HOST, LATER)


def reset(stage: StandinStageNode, seed: int, trial: str = "t") -> StartTrial.Response:
    return stage._on_reset(StartTrial.Request(trial=trial, seed=seed), StartTrial.Response())


def test_a_seed_names_the_simulators_start(stage: StandinStageNode, control: Control) -> None:
    env = native("Lift")
    for seed in (seed_of(env, 0, 7), seed_of(env, 0, 20)):  # with the geometry that the stand-in has
        env.reset([0], [seed])
        control.ask("gripper", stuck=False)
        assert reset(stage, seed).success
        state, cube = control.ask("state"), control.ask("cube")
        facts, qpos = env.task.facts, env.data[0].qpos
        np.testing.assert_allclose(state["q"], qpos[list(facts.arms[0].qpos)], atol=0.01)
        assert abs(state["width"] - 0.0416) < 0.002
        place = facts.placements[0].qpos
        np.testing.assert_allclose(cube["position"][:2], qpos[place : place + 2], atol=1e-3)
        assert abs(cube["position"][2] - 0.821) < 2e-3
        turn = abs(np.dot(cube["quaternion"], np.roll(qpos[place + 3 : place + 7], -1)))
        assert turn > 0.999
    env.close()


def test_a_lifted_cube_is_a_success_until_the_next_trial(stage: StandinStageNode, control: Control) -> None:
    assert reset(stage, 1, "one").success
    stage._look()
    assert stage._episode.trial == "one" and not stage._episode.success
    control.ask("cube", position=[0.0, 0.0, 0.9])
    stage._look()
    control.ask("cube", position=[0.0, 0.0, 0.821])
    stage._look()
    assert stage._episode.success
    assert reset(stage, 2, "two").success
    stage._look()
    assert stage._episode.trial == "two" and not stage._episode.success


def test_a_look_at_the_last_trials_cube_is_no_success_of_the_next(stage: StandinStageNode, control: Control) -> None:
    """The cube is put back while somebody looks at it."""
    assert reset(stage, 1, "one").success
    control.ask("cube", position=[0.0, 0.0, 0.9])
    asked = stage._looking.ask

    def meanwhile(do: str) -> dict:
        answer = asked(do)
        assert reset(stage, 2, "two").success
        return answer

    stage._looking.ask = meanwhile
    stage._look()
    assert stage._episode.trial == "two" and not stage._episode.success


def test_a_driven_arm_is_not_moved(stage: StandinStageNode, control: Control) -> None:
    assert reset(stage, 3).success
    with robot_rig(HOST, control, base_position=[*BASE, 0, 0, 0]) as rig:
        rig.arm()
        assert reset(stage, 3).success, "it stands there already"
        before = control.ask("state")["q"]
        refused = reset(stage, 4)
        assert not refused.success and "in motion" in refused.message
        np.testing.assert_allclose(control.ask("state")["q"], before, atol=5e-3)
        rig.disarm()
        assert reset(stage, 4).success


def test_another_tasks_objects_are_refused() -> None:
    rclpy.init(args=["test", "--ros-args", "-p", "task:=can"])
    try:
        with pytest.raises(UserError, match="other objects than the stand-in's cube"):
            StandinStageNode()
    finally:
        rclpy.try_shutdown()
