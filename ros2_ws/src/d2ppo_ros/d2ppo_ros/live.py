"""A camera's topic and an arm's joints as live views: what `d2ppo calibrate capture --source ros:CAMERA` reads.

Pictures are those of the driver (`source/CAMERA/image`), before any crop. The flange's pose is computed from the joint
angles at the time of the picture, so that no tool and no frame that somebody has set matters.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError
from d2ppo_core.live import LiveView
from d2ppo_core.placed import Placed

from .records import SECOND, ArmState
from .safety.kinematics import forward

FLANGE = 0.107  # m, along joint 7's axis
NEAR = SECOND // 20  # ns: a state this far from a picture still belongs to it
PATIENCE = 10.0  # s without a picture
KEPT = 500  # states: 5 s at 100 Hz


class Joints:
    """The arm's states of late. One thread may `hear` while another asks."""

    def __init__(self) -> None:
        self._states: deque[ArmState] = deque(maxlen=KEPT)

    def hear(self, state: ArmState) -> None:
        """Keep it, if it is newer."""
        if not self._states or state.stamp > self._states[-1].stamp:
            self._states.append(state)

    def at(self, stamp: int) -> tuple[np.ndarray, float] | None:
        """q (7,) rad between the states about `stamp` (ns), and the fastest joint's speed then; None: not known."""
        near = [state for state in list(self._states) if abs(state.stamp - stamp) <= NEAR]
        if not near:
            return None
        times = [float(state.stamp - stamp) for state in near]
        q = np.array([np.interp(0.0, times, angles) for angles in np.array([state.q for state in near]).T])
        return q, float(max(np.abs(state.dq).max() for state in near))


def flange_of(q: np.ndarray) -> Placed:
    """The flange in the arm's base, of joint angles (7,) rad."""
    position, rotation, _ = forward(q, FLANGE)
    quaternion = Rotation.from_matrix(rotation).as_quat()
    return Placed(position=tuple(position.tolist()), quaternion=tuple(quaternion.tolist()))


def live_view(name: str, stamp: int, picture: np.ndarray, joints: Joints) -> LiveView:
    """A picture (h, w, 3) BGR with what is known of the arm at its time."""
    found = joints.at(stamp)
    if found is None:
        return LiveView(name, picture, stamp / SECOND)
    q, speed = found
    return LiveView(name, picture, stamp / SECOND, flange_of(q), tuple(q.tolist()), speed)


def views(rest: str) -> Iterator[LiveView]:
    """Live views of "CAMERA" or "CAMERA:ARM" (arm 0 or 1); the newest each time, for as long as pictures come."""
    camera, _, number = rest.partition(":")
    if not camera or number not in ("", "0", "1"):
        raise UserError(f"'ros:{rest}' names no camera; write ros:CAMERA, or ros:CAMERA:1 for the second arm's")
    return _views(camera, int(number or 0))


def _views(camera: str, arm: int) -> Iterator[LiveView]:
    from . import decoding

    ear = _Ear(camera, arm)
    try:
        last, waited = 0, time.monotonic()
        while True:
            message = ear.newest
            if message is None or decoding.stamp_of(message) == last:
                if time.monotonic() - waited > PATIENCE:
                    raise UserError(f"no picture comes on {ear.topic}; start the camera's driver (same ROS domain)")
                time.sleep(0.005)
                continue
            last, waited = decoding.stamp_of(message), time.monotonic()
            picture, colour = decoding.picture_of(message)
            time.sleep(0.02)  # for the state after it
            upright = np.ascontiguousarray(picture if colour == "bgr" else picture[:, :, ::-1])
            yield live_view(f"{last / SECOND:.3f} s", last, upright, ear.joints)
    finally:
        ear.close()


class _Ear:
    """A node with a thread of its own, in a ROS context of its own."""

    def __init__(self, camera: str, arm: int) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import Image

        from . import topics
        from .environment import environment
        from .runtime import Listener

        self.newest: Any = None
        self.joints = Joints()
        os.environ.update(environment())  # the middleware's, read when ROS begins
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C is the program's
        self._node = rclpy.create_node("calibration", context=self._context)
        listener = Listener(self._node)
        self.topic = self._node.resolve_topic_name(topics.SOURCE.format(camera))
        listener.hear_message(Image, self.topic, lambda message: setattr(self, "newest", message), topics.SENSOR)
        listener.hear(ArmState, topics.ARM.format(arm), self.joints.hear, topics.EVERY)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True, name="calibration")
        self._thread.start()

    def _spin(self) -> None:
        while not self._ended.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        """End the thread, then ROS."""
        self._ended.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()
