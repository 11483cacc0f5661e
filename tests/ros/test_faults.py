"""Everything that can go wrong, in separate processes, while the arm moves: it comes to rest in time, the reason is
latched, nothing moves until it is re-armed. What is expected is stated in `ros_faults.FAULTS`.

Garbage of the right type goes to every topic that any node listens to: no node dies, the arm stays within its limits,
and afterwards a trial runs as before.

Once each here; `make test-faults` does each 20 times and writes what it measured (D2PPO_FAULTS, or runs/faults.json).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.sim, pytest.mark.graph, pytest.mark.faults]
pytest.importorskip("rclpy")
pytest.importorskip("d2ppo_interfaces")
pytest.importorskip("d2ppo_sim.robosuite_env")  # not robosuite itself: the OpenGL backend is not chosen yet

from d2ppo_ros import topics  # noqa: E402
from d2ppo_ros.environment import PROFILES, RANGE  # noqa: E402
from d2ppo_ros.records import State  # noqa: E402
from fault_files import write_down  # noqa: E402
from ros_faults import FAULTS, NODES, Fault, Outcome, busy, endure, judge  # noqa: E402
from ros_garbage import survive  # noqa: E402
from ros_observer import wait  # noqa: E402
from ros_rig import Rig, rig  # noqa: E402

TIMES = 20
BUTTON = """
import rclpy, time
from std_msgs.msg import Empty
rclpy.init()
publisher = rclpy.create_node("button").create_publisher(Empty, "estop", 10)
while True:
    publisher.publish(Empty())
    time.sleep(0.1)
"""
MEASURED = Path(os.environ.get("D2PPO_FAULTS", "runs/faults.json"))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("faults")) as made:
        yield made


def once(system: Rig, fault: Fault, patience: int = 4) -> tuple[Outcome, int]:
    """As expected, or it fails. And how many were not counted, because the machine itself stood still meanwhile."""
    for again in range(patience):
        outcome = endure(system, fault)
        wrong = judge(fault, outcome)
        if not (wrong and busy(fault, outcome)):
            return _expected(fault, wrong, outcome), again
    return _expected(fault, wrong, outcome), patience


def _expected(fault: Fault, wrong: str, outcome: Outcome) -> Outcome:
    assert not wrong, f"{fault.name}: {wrong}"
    return outcome


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_arm_is_at_rest_in_time_and_stays_so(system: Rig, fault: Fault) -> None:
    once(system, fault)
    assert not system.graph.dead()


def sockets(process: int) -> set[str]:
    """Addresses on which this process's UDP sockets listen."""
    held = set()
    for path in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            held.add(os.readlink(path))
    rows = [line.split() for line in Path(f"/proc/{process}/net/udp").read_text().splitlines()[1:]]
    raw = {row[1].partition(":")[0] for row in rows if f"socket:[{row[9]}]" in held}  # little-endian, in hexadecimals
    return {socket.inet_ntoa(bytes.fromhex(address)[::-1]) for address in raw}


def test_nodes_talk_through_sockets_of_this_machine_alone(system: Rig) -> None:
    """In shared memory a node that is killed can leave a lock, at which whoever sends to it waits ever after."""
    for name, process in system.graph.running.items():
        assert "/dev/shm/fastrtps" not in Path(f"/proc/{process.pid}/maps").read_text(), name
        assert sockets(process.pid) == {"127.0.0.1", "239.255.0.1"}, name  # the second: who asks for others, here


def test_a_program_with_ros_as_it_comes_stops_the_arm(system: Rig) -> None:
    """`ros2 topic pub`, from a shell that knows nothing of our profile."""
    system.go()
    plain = {name: value for name, value in os.environ.items() if name not in (*PROFILES, RANGE)}
    plain["ROS_DOMAIN_ID"] = str(system.domain)
    with subprocess.Popen([sys.executable, "-c", BUTTON], env=plain) as button:
        stopped = wait(lambda: system.observer.state is State.STOPPED, 15.0)
        button.kill()  # before anything is asserted: it never ends by itself
    assert stopped and "emergency" in system.observer.cause
    system.ended()


def test_garbage_on_every_topic(system: Rig) -> None:
    survive(system, 50)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_again_and_again(system: Rig, fault: Fault) -> None:
    rows: list[dict] = []
    for _ in range(TIMES):
        outcome, again = once(system, fault, patience=20)
        rows.append(outcome.row() | {"not_counted": again})
        write_down(MEASURED, fault.name, rows)


@pytest.mark.slow
def test_nodes_killed_at_random_come_back_and_the_arm_can_be_armed(system: Rig) -> None:
    """Whatever a node holds when it dies, nobody waits for it ever after: 200 times, at any moment."""
    chance = random.Random(0)
    for _ in range(200):
        name = NODES[chance.choice(sorted(NODES))]
        system.graph.send(name, signal.SIGKILL)
        time.sleep(chance.uniform(0.0, 1.5))
        system.restart(name)
        system.rearm(seconds=30.0)
        assert system.observer.call(topics.DISARM)[0]


@pytest.mark.slow
def test_garbage_again_and_again(system: Rig) -> None:
    rows = [survive(system, 50).row() | {"not_counted": 0} for _ in range(TIMES)]
    write_down(MEASURED, "garbage on every topic", rows)
