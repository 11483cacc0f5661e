"""A node of the test's own process that hears what the graph says, keeps it, and asks what a person would ask."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import rclpy
from d2ppo_interfaces.action import RunTrial
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from d2ppo_ros import codec, topics
from d2ppo_ros.records import SECOND, ArmState, ChunkRequest, Command, PolicyReport, SafetyReport, State
from d2ppo_ros.runtime import Listener


def first(process: int = 0) -> None:
    """Let a process go before everything else that keeps this machine busy, where that is allowed."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, process, -10)


class Observer:
    """A node of the test's own process, spun by a thread: keeps what it hears with the time of arrival (ns)."""

    def __init__(self, domain: int) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("observer", context=self._context)
        self._listener = Listener(self.node)
        self.arms: list[ArmState] = []  # the truth
        self.safety: list[tuple[int, SafetyReport]] = []
        self.applied: list[tuple[int, Command]] = []
        self.policy: PolicyReport | None = None
        self._hear(ArmState, topics.TRUTH.format(0), self.arms.append)
        self._hear(SafetyReport, topics.SAFETY, lambda r: self.safety.append((time.time_ns(), r)), topics.LATCHED)
        self._hear(Command, topics.APPLIED, lambda c: self.applied.append((time.time_ns(), c)))
        self._hear(ChunkRequest, topics.REQUEST, lambda request: self.answer and self.answer(request))
        self._hear(PolicyReport, topics.POLICY, lambda r: setattr(self, "policy", r), topics.LATCHED)
        names = (topics.ARM_SAFETY, topics.REARM, topics.DISARM, topics.ESTOP_CALL, topics.RECORD_END)
        self._calls = {name: self.node.create_client(Trigger, name) for name in names}
        self.button = self.node.create_publisher(Empty, topics.ESTOP, topics.EVERY)  # for the emergency stop
        self._parameters: dict[str, Any] = {}
        self._publishers: dict[str, Any] = {}
        self.answer: Callable[[ChunkRequest], None] | None = None  # in place of the policy
        self.trials = ActionClient(self.node, RunTrial, topics.RUN_TRIAL)
        first()  # threads inherit it
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True, name="observer")
        self._thread.start()
        os.setpriority(os.PRIO_PROCESS, 0, 0)

    def _hear(self, record: type, topic: str, keep: Callable[[Any], Any], qos: Any = topics.EVERY) -> None:
        self._listener.hear(record, topic, keep, qos)

    @property
    def state(self) -> State | None:
        """Safety's last word."""
        return self.safety[-1][1].state if self.safety else None

    @property
    def cause(self) -> str:
        """The check behind a HOLD or STOPPED, and the reason in words."""
        report = self.safety[-1][1]
        return f"{report.check}: {report.reason}"

    def voices(self, node: str) -> set[tuple[int, ...]]:
        """Every process that this node had so far: the dead are known for a while too."""
        known = self.node.get_publishers_info_by_topic("/rosout")
        return {tuple(info.endpoint_gid) for info in known if info.node_name == node}

    def publish(self, topic: str, record: Any, qos: Any = topics.EVERY) -> None:
        """Say something in place of a node."""
        if topic not in self._publishers:
            self._publishers[topic] = self.node.create_publisher(codec.MESSAGES[type(record)], topic, qos)
            wait(self._publishers[topic].get_subscription_count, 5.0)
        self._publishers[topic].publish(codec.ENCODERS[type(record)](record))

    def forget(self) -> None:
        """Begin to watch anew."""
        self.arms[:] = self.arms[-50:]
        self.safety[:] = self.safety[-1:]
        self.applied.clear()

    def call(self, name: str, patience: float = 2.0) -> tuple[bool, str]:
        """Call a Trigger service."""
        client = self._calls[name]
        if not client.wait_for_service(timeout_sec=patience):
            return False, f"nobody offers {name}"
        answer = result_of(client.call_async(Trigger.Request()), patience)
        return (answer.success, answer.message) if answer else (False, f"{name} does not answer")

    def set(self, node: str, **values: Any) -> int:
        """Set parameters of a running node, as `ros2 param set` does; when (ns) the node, once found, was asked."""
        client = self._parameters.get(node)
        if client is None:
            client = self._parameters[node] = self.node.create_client(SetParameters, f"{node}/set_parameters")
        assert client.wait_for_service(timeout_sec=5.0), f"{node} takes no parameters"
        wanted, asked = [Parameter(name=name, value=_value(value)) for name, value in values.items()], time.time_ns()
        answer = result_of(client.call_async(SetParameters.Request(parameters=wanted)), 5.0)
        assert answer and all(result.successful for result in answer.results), answer
        return asked

    def close(self) -> None:
        """Stop listening."""
        self._executor.shutdown()
        self._thread.join(timeout=2.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)


def _value(value: Any) -> ParameterValue:
    if isinstance(value, bool):
        return ParameterValue(type=1, bool_value=value)
    return ParameterValue(type=3, double_value=float(value))


def result_of(future: Any, patience: float) -> Any:
    """What another thread spins for; None when it does not come."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return future.result() if done.wait(patience) else None


def wait(until: Callable[[], Any], seconds: float) -> Any:
    """The first true answer, or the last one."""
    deadline = time.monotonic() + seconds
    while not (answer := until()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return answer


def speeds(arms: list[ArmState], window: int = 30_000_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (n,) ns, and over the `window` before each the linear (n,) m/s and angular (n,) rad/s speed."""
    times, rows, first = [], [], 0
    for arm in arms:
        while arm.stamp - arms[first].stamp > window:
            first += 1
        base, seconds = arms[max(0, first - 1)], (arm.stamp - arms[max(0, first - 1)].stamp) / SECOND
        if seconds > 0:
            cosine = (np.trace(arm.rotation @ base.rotation.T) - 1) / 2
            turn = np.arccos(np.clip(cosine, -1, 1)) if cosine < 1 - 1e-10 else 0.0
            times.append(arm.stamp)
            rows.append((np.linalg.norm(arm.position - base.position) / seconds, turn / seconds))
    linear, angular = np.array(rows).reshape(-1, 2).T
    return np.array(times), linear, angular
