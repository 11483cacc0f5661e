"""RealSense cameras, each named by its serial number: their pictures as they come, on `source/CAMERA/image`.

One thread a camera opens it, reads it and opens it anew (`d2ppo_ros.realsense.driver`). Each picture goes out with the
time at which it was taken, the camera's own frame number, and the lens that the factory has measured. What the camera
was set to and says that it is set to is latched on `source/CAMERA/setup`, losses and rates are diagnostics. A camera
that falls silent is silent here, too: no frame is ever sent twice.

`device: software` shows what comes on `standin/CAMERA/picture`, through the same library; `playback` shows recordings.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from .. import codec, decoding, topics
from ..parameters import declare
from ..realsense import library
from ..realsense.driver import CameraThread, Picture, Setup
from ..realsense.settings import RealsenseSettings, Wanted, wanted
from ..realsense.software import SoftwareCamera
from ..records import FrameInfo
from ..runtime import Listener, run, speaker

LOOK = 0.1  # s between two looks whether a camera cannot be opened at all
REPORT = 1.0  # s
LOSSY = 0.02  # share of frames lost that is worth a warning
LEVELS = {"live": DiagnosticStatus.OK, "stale": DiagnosticStatus.STALE}


class RealsenseNode(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("realsense")
        self.settings = declare(self, RealsenseSettings)
        self.finished, self.code = threading.Event(), 0
        cameras = wanted(self.settings)
        attach = self._attach(cameras)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", topics.EVERY)
        self.outlets = {camera.name: Outlet(self, camera) for camera in cameras}
        self.threads = {
            camera.name: CameraThread(camera, attach, self.settings, self.outlets[camera.name].say,
                                      self.outlets[camera.name].say_setup)
            for camera in cameras
        }  # fmt: skip
        for name, thread in self.threads.items():
            self.outlets[name].thread = thread
            thread.start()
        self.create_timer(LOOK, self._look)
        self.create_timer(REPORT, self._report)

    def _attach(self, cameras: list[Wanted]) -> library.Attach:
        """Where the library gets frames from."""
        library.load()
        if self.settings.device == "real":
            return library.attach_real
        if self.settings.device == "playback":
            return library.attach_file
        software = {camera.name: SoftwareCamera(camera) for camera in cameras}
        listener = Listener(self)
        for name, camera in software.items():
            feed = partial(_feed, camera, iter(range(1, sys.maxsize)))
            listener.hear_message(Image, topics.STANDIN_PICTURE.format(name), feed, topics.NEWEST)
        return library.attach_software({name: camera.device for name, camera in software.items()})

    def _look(self) -> None:
        """A camera that is not there, or cannot be set, is a mistake to mend before anything runs."""
        for thread in self.threads.values():
            if thread.failure is not None and not self.finished.is_set():
                print(f"d2ppo: {thread.failure}", file=sys.stderr, flush=True)
                self.code = 2
                self.finished.set()

    def _report(self) -> None:
        stamp = self.get_clock().now().nanoseconds
        status = [status_of(thread) for thread in self.threads.values()]
        self._diagnostics.publish(DiagnosticArray(header=codec.header(stamp), status=status))

    def close(self) -> None:
        """Stop every camera."""
        for thread in self.threads.values():
            thread.end()


class Outlet:
    """What one camera says. Called by its thread."""

    def __init__(self, node: Node, camera: Wanted) -> None:
        self.name, self._node, self._camera = camera.name, node, camera
        self.thread: CameraThread | None = None
        self._image = node.create_publisher(Image, topics.SOURCE.format(camera.name), topics.NEWEST)
        self._info = node.create_publisher(CameraInfo, topics.SOURCE_INFO.format(camera.name), topics.NEWEST)
        self._setup = node.create_publisher(String, topics.SOURCE_SETUP.format(camera.name), topics.LATCHED)
        self._frame = speaker(node, FrameInfo, topics.SOURCE_FRAME.format(camera.name), topics.EVERY)

    def say(self, picture: Picture) -> None:
        """One picture: what it is first, then itself."""
        frame = FrameInfo(picture.time, self.name, picture.number, picture.dropped, picture.repeated)
        self._frame(frame)
        lens = self.thread.setup.lens
        info = codec.lens_msg(picture.time, self.name, (lens.width, lens.height), lens.matrix, lens.distortion)
        self._info.publish(info)
        self._image.publish(codec.image_msg(picture.time, self.name, picture.pixels))

    def say_setup(self, setup: Setup) -> None:
        """What was read back, when it differs from before."""
        settings = self._node.settings
        about: dict[str, Any] = {
            "camera": self.name, "device": settings.device, "about": setup.about, "options": setup.options,
            "changed": setup.changed, "lens": asdict(setup.lens), "fps": self._camera.fps, "file": self._camera.file,
            "latency": settings.latency, "receive_latency": settings.receive_latency,
        }  # fmt: skip
        self._setup.publish(codec.text_msg(json.dumps(about)))
        if setup.changed:
            listed = ", ".join(f"{key} {old:g} -> {new:g}" for key, (old, new) in setup.changed.items())
            self._node.get_logger().warning(f"camera {self.name}: its settings have changed: {listed}")


def status_of(thread: CameraThread) -> DiagnosticStatus:
    """How a camera stands, for `/diagnostics`."""
    link, account, rates = thread.link, thread.account, thread.rates()
    level = LEVELS.get(link.phase, DiagnosticStatus.ERROR)
    message = link.phase if link.phase == "live" else f"{link.phase}: {thread.said or 'no frame comes'}"
    if level == DiagnosticStatus.OK and (rates.dropped > LOSSY or thread.setup.changed or thread.clock.why):
        level = DiagnosticStatus.WARN
    values = {
        "serial": thread.wanted.serial, "frames": account.passed, "dropped": account.dropped,
        "repeated": account.repeated, "rate": f"{rates.frames:.2f} Hz", "drop rate": f"{rates.dropped:.4f}",
        "rebuilds": link.rebuilds, "resets": link.resets, "stuck stops": link.stuck,
        "stamped by arrival": thread.clock.ours, "refused for their time": thread.clock.backward,
        "clock": thread.clock.why or "the camera's", "frame's exposure": f"{thread.exposure or 0:g} ms",
    } | {f"option {name}": f"{value:g}" for name, value in thread.setup.options.items()}  # fmt: skip
    values |= {f"changed {name}": f"{old:g} -> {new:g}" for name, (old, new) in thread.setup.changed.items()}
    listed = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(
        level=level, name=f"realsense {thread.wanted.name}", hardware_id=thread.wanted.serial, message=message,
        values=listed,
    )  # fmt: skip


def _feed(camera: SoftwareCamera, numbers: Any, message: Image) -> None:
    """A picture for the stand-in, as if its sensor had taken it at the message's time."""
    pixels, colour = decoding.picture_of(message)
    camera.feed(pixels if colour == "rgb" else pixels[:, :, ::-1], decoding.stamp_of(message), next(numbers))


def main() -> int:
    return run(RealsenseNode)


if __name__ == "__main__":
    sys.exit(main())
