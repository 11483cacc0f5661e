"""What every node process shares: its own signal handlers, a loop on absolute deadlines, callbacks that survive.

rclpy's default handlers shut the context down before anybody can publish a last stop, so we install our own: a signal
only sets an event, the loop ends, `close` says the last word, and then everything is shut down in order.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.context import Context
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from d2ppo_core.errors import UserError

from . import codec, decoding
from .environment import environment

WAIT = 0.1  # s: how long one look for work may last; a signal is noticed after at most this
SWITCH = 0.0005  # s until a thread that waits for Python's lock gets it: a loop on deadlines must not wait for 5 ms


def run(make: Callable[[], Node], arguments: list[str] | None = None) -> int:
    """Start ROS, make the node, serve it until a signal or until its `finished` is set; the exit code.

    A `UserError` while it is made is answered with its one sentence and exit code 2. Where the node has them, `close()`
    is called before ROS goes down, and `code` is what is returned.
    """
    stop = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: stop.set())
    try:
        os.environ.update(environment())  # who is started by hand talks as the others do
        rclpy.init(args=sys.argv if arguments is None else arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = make()
    except UserError as error:
        print(f"d2ppo: {error}", file=sys.stderr, flush=True)
        rclpy.try_shutdown()
        return 2
    sys.setswitchinterval(SWITCH)
    executor = SingleThreadedExecutor() if getattr(node, "asks", False) else fastest_executor()
    executor.add_node(node)
    finished = getattr(node, "finished", threading.Event())
    try:
        while not stop.is_set() and not finished.is_set():
            try:
                executor.spin_once(timeout_sec=WAIT)
            except RCLError as error:  # an invalid life-cycle request must not kill the node (rclpy #1209)
                node.get_logger().error(f"refused: {error}")
    finally:
        if hasattr(node, "close"):
            node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    _leave_quickly()
    return int(getattr(node, "code", 0))


def fastest_executor(context: Context | None = None) -> Executor:
    """rclpy's EventsExecutor where there is one (from Jazzy on): without a wait set for each message, states at 100 Hz
    take a third less of a core. It neither goes on with coroutines nor notices what other threads ask for: nodes that
    do so (`asks`) need the other one.
    """
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor(context=context)
    return EventsExecutor(context=context)


def _leave_quickly() -> None:
    """Everything is said and freed: a second Ctrl-C (the terminal's, and ROS launch's) must not end us with an error,
    and torch's C++ destructors are left out, which take seconds of a busy machine.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)  # what is registered last runs first


class Listener:
    """Subscribes a node to records. A message that is no valid record, or a callback that fails, is counted, logged
    once a second and given to `on_fault`; the node goes on.
    """

    def __init__(self, node: Node, on_fault: Callable[[str], None] | None = None) -> None:
        self._node, self._on_fault, self._said = node, on_fault, 0.0
        self.bad = 0

    def hear(self, record: type, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        """Call `callback(record)` for each message on `topic`."""
        decode = decoding.DECODERS[record]
        self.hear_message(codec.MESSAGES[record], topic, lambda message: callback(decode(message)), qos)

    def hear_message(self, kind: type, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        """The same for a plain ROS message."""

        def guarded(message: Any) -> None:
            try:
                callback(message)
            except Exception as error:  # whatever it was: the node must go on listening
                self._report(f"{topic}: {error or type(error).__name__}")

        self._node.create_subscription(kind, topic, guarded, qos)

    def _report(self, text: str) -> None:
        self.bad += 1
        if time.monotonic() - self._said > 1.0:
            self._said = time.monotonic()
            self._node.get_logger().warning(f"{text[:300]} ({self.bad} bad messages so far)")
        if self._on_fault:
            self._on_fault(text)


def speaker(node: Node, record: type, topic: str, qos: Any) -> Callable[[Any], None]:
    """A function that publishes records of one kind on `topic`; any thread may call it."""
    publisher, encode = node.create_publisher(codec.MESSAGES[record], topic, qos), codec.ENCODERS[record]
    return lambda value: publisher.publish(encode(value))


def called(executor: Executor, call: Callable[..., Future], *arguments: Any, patience: float = 10.0) -> Future:
    """What an action client's asynchronous call returns, made by the thread that spins `executor`.

    rclpy's action clients lose an answer that comes before such a call has returned, so no other thread may make it;
    its service clients do not. Raises a TimeoutError where nobody spins.
    """
    task, done = executor.create_task(call, *arguments), threading.Event()
    task.add_done_callback(lambda _: done.set())
    if not done.wait(patience):
        raise TimeoutError(f"nobody has served this node for {patience:g} s")
    return task.result()


class DeadlineLoop(threading.Thread):
    """Calls `work()` at absolute deadlines on the monotonic clock; those that have passed are skipped and counted."""

    LATE = 10_000_000  # ns: more than this late is a missed deadline

    def __init__(self, rate: float, work: Callable[[], None], name: str) -> None:
        super().__init__(daemon=True, name=name)
        self.period, self._work, self._stop_event = int(1e9 / rate), work, threading.Event()
        self.ticks = self.missed = 0
        self.due = self.late = 0  # ns of this tick: its deadline on the monotonic clock, and how late it came
        self.error: BaseException | None = None

    def run(self) -> None:
        self.due = time.monotonic_ns() + self.period
        try:
            while not self._stop_event.wait(max(0, self.due - time.monotonic_ns()) / 1e9):
                self.late = time.monotonic_ns() - self.due
                self.ticks += 1
                self.missed += self.late > self.LATE
                self._work()
                self.due += self.period
                behind = time.monotonic_ns() - self.due
                if behind > 0:
                    self.due += (behind // self.period) * self.period
        except BaseException as error:  # a loop that ends must be noticed
            self.error = error
            raise

    def stop(self) -> None:
        """End the loop and wait for it."""
        self._stop_event.set()
        if self.is_alive() and self is not threading.current_thread():
            self.join(timeout=2.0)
