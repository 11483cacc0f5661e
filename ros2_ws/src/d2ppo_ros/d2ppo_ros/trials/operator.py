"""The operator's node: hears how robot, safety and policy stand, and asks for what a person has pressed.

In the program of the session itself, in a ROS context of its own. A thread says on `operator` twenty times a second
that the stop can be reached; where it falls silent, or says no, the safety node holds the arm and then latches a stop.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from d2ppo_interfaces.action import RunTrial
from d2ppo_interfaces.srv import StartTrial
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Empty
from std_srvs.srv import Trigger

from d2ppo_core.errors import UserError

from .. import codec, decoding, topics
from ..records import ArmState, PolicyReport, SafetyReport, State
from ..runtime import DeadlineLoop, Listener, called
from .system import Trouble

ALIVE = 20.0  # Hz
REPEAT = 2.0  # s: how long a stop is said again while safety does not say that it has stopped
LOOK = 1.0  # s between two looks for cameras
SOURCE = re.compile(re.escape(topics.SOURCE).replace(re.escape("{}"), "(.+)") + "$")
CALLS = (topics.ARM_SAFETY, topics.DISARM, topics.REARM, topics.ESTOP_CALL)


class Operator:
    """See the module. Any thread may call its methods.

    Args:
        pressed: whether the operator can reach the stop just now; None: a switch of their own says that.
    """

    def __init__(self, environment: dict[str, str], pressed: Callable[[], bool] | None) -> None:
        os.environ.update(environment)  # the middleware's, read when ROS begins
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("operator_desk", context=self._context)
        self._pressed, self._stopping = pressed, 0.0
        self.safety: SafetyReport | None = None
        self.heard = 0.0  # when safety spoke last, by the steady clock
        self.policy: PolicyReport | None = None
        self._watched: list[tuple[float, SafetyReport]] | None = None  # changes since a trial began
        self._arms: dict[int, tuple[float, Any]] = {}
        self._images: dict[str, tuple[int, Any]] = {}
        self._handle: Any = None  # of the trial that is being run
        self._cancel = threading.Event()
        self._listen()
        self._say = self.node.create_publisher(Bool, topics.OPERATOR, topics.EVERY)
        self._button = self.node.create_publisher(Empty, topics.ESTOP, topics.EVERY)
        self._calls = {name: self.node.create_client(Trigger, name) for name in CALLS}
        self._reset = self.node.create_client(StartTrial, topics.RESET)
        self._trials = ActionClient(self.node, RunTrial, topics.RUN_TRIAL)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        threading.Thread(target=self._spin, daemon=True, name="operator").start()
        self._loop = DeadlineLoop(ALIVE, self._beat, "operator's heartbeat")
        self._loop.start()

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin_once(timeout_sec=0.1)
            except Exception as error:  # a mishap in one callback must not make the desk deaf
                if self._context.ok():
                    self.node.get_logger().error(f"{type(error).__name__}: {error}")

    # --- what is heard ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        listener, kind = Listener(self.node), codec.MESSAGES[ArmState]
        listener.hear(SafetyReport, topics.SAFETY, self._on_safety, topics.REPORT)
        listener.hear(PolicyReport, topics.POLICY, lambda report: setattr(self, "policy", report), topics.REPORT)
        for number in range(2):
            listener.hear_message(
                kind, topics.ARM.format(number),
                lambda message, n=number: self._arms.update({n: (time.monotonic(), message)}), topics.NEWEST,
            )  # fmt: skip
        self._listener = listener
        self._seen: set[str] = set()
        self.node.create_timer(LOOK, self._look_for_cameras)

    def _look_for_cameras(self) -> None:
        """Every camera's own pictures, whoever publishes them."""
        for topic, kinds in self.node.get_topic_names_and_types():
            found = SOURCE.search(topic)
            if found and topic not in self._seen and "sensor_msgs/msg/Image" in kinds:
                self._seen.add(topic)
                name = found.group(1)
                self._listener.hear_message(Image, topic, lambda message, n=name: self._on_image(n, message),
                                            topics.SENSOR)  # fmt: skip

    def _on_image(self, name: str, message: Any) -> None:
        """The newest is kept as it came; it is decoded when somebody looks at it."""
        self._images[name] = decoding.stamp_of(message), message

    def _on_safety(self, report: SafetyReport) -> None:
        self.safety, self.heard = report, time.monotonic()
        if report.state is State.STOPPED:
            self._stopping = 0.0
        watched = self._watched
        if watched is not None:
            last = watched[-1][1] if watched else None
            if last is None or (last.state, last.check) != (report.state, report.check):
                watched.append((time.monotonic(), report))

    def robot(self) -> list[dict[str, Any]]:
        """What each arm says of itself, for people."""
        found = []
        for number, (heard, message) in sorted(self._arms.items()):
            arm = decoding.DECODERS[ArmState](message)
            found.append({
                "arm": number, "position": [round(float(v), 3) for v in arm.position],
                "force": round(float(np.linalg.norm(arm.wrench[:3])), 1), "fault": arm.fault, "ok": bool(arm.ok),
                "age": round(time.monotonic() - heard, 2),
            })  # fmt: skip
        return found

    def cameras(self) -> list[str]:
        """Names of those that have sent a picture."""
        return sorted(self._images)

    def picture(self, camera: str) -> tuple[int, np.ndarray] | None:
        """The newest picture (H, W, 3) RGB of a camera and its time; None: there is none."""
        if camera not in self._images:
            return None
        stamp, message = self._images[camera]
        try:
            picture, colour = decoding.picture_of(message)
        except UserError:  # an encoding that the camera's node refuses, too, and says so
            return None
        return stamp, picture if colour == "rgb" else picture[..., ::-1]

    # --- what is asked ------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        if self._pressed is not None:
            self._say.publish(Bool(data=bool(self._pressed())))
        if time.monotonic() < self._stopping:
            self._button.publish(Empty())

    def stop(self) -> None:
        """At once, and again until safety says that it has stopped. Waits for nothing."""
        self._button.publish(Empty())
        self._stopping = time.monotonic() + REPEAT
        if self._calls[topics.ESTOP_CALL].service_is_ready():
            self._calls[topics.ESTOP_CALL].call_async(Trigger.Request())

    def call(self, name: str, patience: float = 5.0) -> tuple[bool, str]:
        """Call one of the safety node's services."""
        answer = self._answer(self._calls[name], Trigger.Request(), name, patience)
        return bool(answer.success), str(answer.message)

    def reset(self, trial: str, seed: int, patience: float = 20.0) -> None:
        """Put the simulator to a start state."""
        answer = self._answer(self._reset, StartTrial.Request(trial=trial, seed=seed), topics.RESET, patience)
        if not answer.success:
            raise Trouble(f"the simulator cannot be reset: {answer.message}")

    def _answer(self, client: Any, request: Any, name: str, patience: float) -> Any:
        if not client.wait_for_service(timeout_sec=patience):
            raise Trouble(f"nobody offers the service {name}; has its node ended?")
        answer = self._result(client.call_async(request), patience)
        if answer is None:
            raise Trouble(f"the service {name} does not answer")
        return answer

    def ready(self) -> None:
        """Before `run` is asked for: a `cancel` from now on is this trial's."""
        self._cancel.clear()

    def run(
        self, goal: RunTrial.Goal, feedback: Callable[[float], None], check: Callable[[], None]
    ) -> tuple[RunTrial.Result, list[Any]]:
        """Run a trial to its end; its result, and what safety said meanwhile as (s since the begin, report).

        `check` is called while it runs, and raises where nobody is left who could end it.
        """
        if not self._trials.wait_for_server(timeout_sec=20.0):
            raise Trouble("nobody runs trials; has the node `trial` ended?")
        begin = time.monotonic()
        self._watched = [(begin, self.safety)] if self.safety else []
        try:

            def tell(message: Any) -> None:
                feedback(float(message.feedback.elapsed))

            asked = called(self._executor, self._trials.send_goal_async, goal, tell)
            self._handle = self._result(asked, 20.0)
            if self._handle is None or not self._handle.accepted:
                raise Trouble("the node `trial` refused the trial: another one is running")
            if self._cancel.is_set():  # it was asked for before there was anything to cancel
                called(self._executor, self._handle.cancel_goal_async)
            future = called(self._executor, self._handle.get_result_async)
            while (answer := self._result(future, LOOK)) is None:
                check()
            return answer.result, [(at - begin, report) for at, report in self._watched]
        finally:
            self._handle = self._watched = None

    def _result(self, future: Any, patience: float) -> Any:
        """What the node's thread spins for; None when it does not come in time, or this node is closed."""
        done, deadline = threading.Event(), time.monotonic() + patience
        future.add_done_callback(lambda _: done.set())
        while not done.wait(0.1):
            if time.monotonic() > deadline or not self._context.ok():
                return None
        return future.result()

    def cancel(self) -> None:
        """Ask for the running trial's end."""
        self._cancel.set()
        handle = self._handle
        if handle is not None:
            called(self._executor, handle.cancel_goal_async)

    def close(self) -> None:
        """Say no more."""
        self._loop.stop()
        self._context.try_shutdown()
