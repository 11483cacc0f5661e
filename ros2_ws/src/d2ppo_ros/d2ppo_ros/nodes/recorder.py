"""The recorder: writes every message of a trial into a bag, as raw bytes.

Two ROS nodes in one process: this one answers the services and may wait while it does; an inner one, spun by a thread
of its own, only hands messages to the writer's queue. So nothing is missed while a trial is opened or closed.
"""

from __future__ import annotations

import importlib
import json
import queue
import sys
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from d2ppo_interfaces.srv import StartRecording
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from std_msgs.msg import String
from std_srvs.srv import Trigger

from d2ppo_core.errors import UserError

from .. import topics
from ..parameters import declare
from ..recording.recorder import Recorder, RecorderSettings, optional, until, wanted
from ..recording.writer import Topic
from ..runtime import Listener, fastest_executor, run

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

DEPTH = 1000  # messages of a topic that may wait while Python is busy
IMAGES = 60
LOOK = 0.02  # s between two looks of the inner node's thread for what it is asked to do


class RecorderNode(Node):
    """Services `recorder/start` and `recorder/stop`."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.settings = declare(self, RecorderSettings)
        self.recorder = Recorder(self.settings)
        self._wanted = {self.resolve_topic_name(name): kind for name, kind in wanted(self.settings).items()}
        self._optional = {self.resolve_topic_name(name) for name in optional(self.settings)}
        self._setups: dict[str, Any] = {}  # of the cameras: what formed their pictures, for trial.json
        listener = Listener(self)
        for name in self.settings.cameras:
            keep = partial(self._keep_setup, name)
            listener.hear_message(String, topics.SETUP.format(name), keep, topics.LATCHED)
        self._intake = Intake(self)
        self.create_service(StartRecording, topics.RECORD, self._start)
        self.create_service(Trigger, topics.RECORD_END, self._stop)

    def _keep_setup(self, camera: str, message: String) -> None:
        self._setups[camera] = json.loads(message.data)

    def _start(self, request: StartRecording.Request, response: StartRecording.Response) -> StartRecording.Response:
        """Answers when every wanted topic is subscribed to, or says which ones nobody publishes."""
        try:
            absent = self._await_publishers()
            offered = [Topic(name, kind, self._qos_of(name)) for name, kind in self._wanted.items()]
            response.path = str(self._opened(request, offered).absolute())
            self._intake.subscribe(self._wanted, self.recorder, self._reliability)
            there = {name for name in self._wanted if self.count_publishers(name)}
            until(lambda: self._intake.matched(there), self.settings.patience)
            time.sleep(self.settings.settle)
            self._intake.settled.set()
            response.success = True
            response.message = f"nobody publishes {', '.join(sorted(absent))}" if absent else "all topics are recorded"
        except (UserError, ImportError) as error:
            response.success, response.message = False, str(error)
        self.get_logger().info(f"{request.trial}: {response.message}")
        return response

    def _opened(self, request: StartRecording.Request, offered: list[Topic]) -> Path:
        """The trial's folder, begun."""
        seen = {"cameras": self._setups} if self._setups else {}
        return self.recorder.start(request.trial, request.metadata, offered, seen)

    def _await_publishers(self) -> set[str]:
        """Wait until every topic has a publisher; those that have none at the end."""

        def absent() -> set[str]:
            return {name for name in self._wanted.keys() - self._optional if not self.count_publishers(name)}

        until(lambda: not absent(), self.settings.patience)
        return absent()

    def _reliability(self, name: str) -> QoSProfile:
        """What fits all publishers of a topic: reliable or latched only where every one of them is."""
        offered = [info.qos_profile for info in self.get_publishers_info_by_topic(name)]
        reliable = offered and all(qos.reliability is ReliabilityPolicy.RELIABLE for qos in offered)
        latched = offered and all(qos.durability is DurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
        return QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=IMAGES if self._wanted[name].endswith("/Image") else DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )

    def _qos_of(self, name: str) -> tuple[Qos, ...]:
        """How publishers offer a topic, as the bag keeps it."""
        return tuple(_bag_qos(info.qos_profile) for info in self.get_publishers_info_by_topic(name))

    def _stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            if self.recorder.folder:
                time.sleep(self.settings.linger)
            self._intake.unsubscribe()
            about = self.recorder.stop("stopped")
            count = sum(topic["written"] for topic in about["topics"].values())
            response.success, response.message = True, f"{count} messages" + (", LOSSY" if about["lossy"] else "")
        except UserError as error:
            response.success, response.message = False, str(error)
        self.get_logger().info(response.message)
        return response

    def close(self) -> None:
        """End a trial that is still being recorded; called before ROS goes down."""
        self._intake.close()
        if self.recorder.folder:
            try:
                self.recorder.stop("the recorder was shut down")
            except UserError as error:
                self.get_logger().error(str(error))


class Intake:
    """The inner node and its thread. Subscriptions are made and removed by that thread, between two messages."""

    def __init__(self, outer: Node) -> None:
        self._node = Node(
            f"{outer.get_name()}_intake", namespace=outer.get_namespace(), context=outer.context,
            use_global_arguments=False, start_parameter_services=False, enable_rosout=False,
        )  # fmt: skip
        self._executor = fastest_executor(outer.context)
        self._executor.add_node(self._node)
        self._ended, self.settled = threading.Event(), threading.Event()
        self._asked: queue.SimpleQueue[tuple[Any, Future[None]]] = queue.SimpleQueue()
        self._subscriptions: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._spin, daemon=True, name="intake")
        self._thread.start()

    def _spin(self) -> None:
        while not self._ended.is_set():
            while not self._asked.empty():
                work, done = self._asked.get()
                try:
                    done.set_result(work())
                except Exception as error:
                    done.set_exception(error)
            self._executor.spin_once(timeout_sec=LOOK)

    def _do(self, work: Any) -> None:
        """Have `work()` done by the thread, and wait for it."""
        done: Future[None] = Future()
        self._asked.put((work, done))
        done.result()

    def subscribe(self, wanted: dict[str, str], recorder: Recorder, profile: Any) -> None:
        """Listen to every topic and hand its messages to the recorder."""
        kinds = {name: _message_class(kind) for name, kind in wanted.items()}
        profiles = {name: profile(name) for name in wanted}

        def work() -> None:
            for name, kind in kinds.items():
                take, events = _taker(recorder, name), self._events(recorder, name)
                self._subscriptions[name] = self._node.create_subscription(
                    kind, name, take, profiles[name], raw=True, event_callbacks=events
                )

        self.settled.clear()
        self._do(work)

    def _events(self, recorder: Recorder, name: str) -> SubscriptionEventCallbacks:
        """What a latched topic no longer held when we joined is reported as lost, too; that does not count."""

        def lost(info: Any) -> None:
            if self.settled.is_set():
                recorder.lose(name, info.total_count_change)

        return SubscriptionEventCallbacks(message_lost=lost)

    def unsubscribe(self) -> None:
        def work() -> None:
            while self._subscriptions:
                self._node.destroy_subscription(self._subscriptions.popitem()[1])

        self._do(work)

    def matched(self, names: set[str]) -> bool:
        """Whether each of these topics' subscriptions has found a publisher."""
        counts = {name: getattr(sub, "get_publisher_count", lambda: 1)() for name, sub in self._subscriptions.items()}
        return all(counts[name] for name in names)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()


def _taker(recorder: Recorder, name: str) -> Any:
    return lambda message: recorder.take(name, time.time_ns(), bytes(message))


def _message_class(kind: str) -> type:
    package, _, name = kind.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"there is no message type {kind} here ({error}); build or source its package") from error


def _bag_qos(qos: QoSProfile) -> Qos:
    def span(duration: Any) -> QosTime:
        return QosTime(*divmod(duration.nanoseconds, 10**9))

    return Qos(
        QosHistory(int(qos.history)), qos.depth, QosReliability(int(qos.reliability)),
        QosDurability(int(qos.durability)), span(qos.deadline), span(qos.lifespan), QosLiveliness(int(qos.liveliness)),
        span(qos.liveliness_lease_duration), qos.avoid_ros_namespace_conventions,
    )  # fmt: skip


def main() -> int:
    return run(RecorderNode)


if __name__ == "__main__":
    sys.exit(main())
