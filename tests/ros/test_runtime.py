"""Calls of action clients from other threads."""

from __future__ import annotations

import threading

import pytest

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("d2ppo_interfaces")

from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.task import Future  # noqa: E402

from d2ppo_ros.runtime import called  # noqa: E402

pytestmark = pytest.mark.ros


def test_a_call_is_made_by_the_thread_that_spins_and_its_future_handed_over() -> None:
    rclpy.init()
    node, executor, over = rclpy.create_node("calls"), SingleThreadedExecutor(), threading.Event()
    executor.add_node(node)
    seen: list[object] = []

    def call(number: int) -> Future:
        seen.append((threading.current_thread().name, number))
        return Future()

    def spin() -> None:
        while not over.is_set():
            executor.spin_once(timeout_sec=0.05)

    spinner = threading.Thread(target=spin, name="spinner")
    spinner.start()
    assert all(isinstance(called(executor, call, number), Future) for number in range(50))
    assert seen == [("spinner", number) for number in range(50)]
    over.set()
    spinner.join()
    with pytest.raises(TimeoutError, match="nobody has served"):
        called(executor, call, 0, patience=0.05)
    node.destroy_node()
    rclpy.try_shutdown()
