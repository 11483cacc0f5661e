"""One camera: takes pictures from a topic, publishes them as the policy gets them and as they came, numbered.

A life-cycle node: `configure` checks its settings and states its side of the contract, `activate` begins to publish.
Drivers of real cameras are nodes of their own that publish `source/NAME/image`; everything behind that is the same.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError
from d2ppo_core.observation import fit_image
from d2ppo_core.tasks import load_task, observation_spec

from .. import codec, decoding, topics
from ..lifecycle import AutoNode
from ..parameters import declare, parameter
from ..records import SECOND, FrameInfo
from ..runtime import Listener, run, speaker
from ..trace import Trace


@dataclass(frozen=True)
class CameraSettings:
    """Parameters of a camera's node."""

    task: str = parameter("lift_image", "the task whose contract says how the policy's pictures are")
    camera: str = parameter("robot0_eye_in_hand", "which of the task's cameras this is")
    source: str = parameter("", "topic of the pictures; empty: source/CAMERA/image")
    source_origin: str = parameter("top_left", "where the source's first row is", choices=("top_left", "bottom_left"))
    reliable: bool = parameter(True, "ask the source for every picture; false fits drivers that send as sensors do")
    rate: float = parameter(0.0, "pictures a second that should come; 0: unknown, none counted as lost", low=0.0)
    autostart: bool = parameter(True, "configure and activate without being asked")


class CameraNode(AutoNode):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("camera")
        self.settings = declare(self, CameraSettings)
        self._trace = Trace(self.get_name())
        self.begin(self.settings.autostart)

    def configure(self) -> None:
        """Which camera this is, and its topics."""
        options = self.settings
        cameras = {camera.name: camera for camera in observation_spec(load_task(options.task)).cameras}
        if options.camera not in cameras:
            raise UserError(
                f"task '{options.task}' has no camera '{options.camera}'; it has {', '.join(cameras) or 'none'}"
            )
        self.camera: Camera = cameras[options.camera]
        name = self.camera.name
        self._contract = self.create_publisher(String, topics.CAMERA.format(name), topics.LATCHED)
        self._image = self.create_publisher(Image, topics.IMAGE.format(name), topics.NEWEST)
        self._raw = self.create_publisher(Image, topics.RAW.format(name), topics.NEWEST)
        self._info = self.create_publisher(CameraInfo, topics.CAMERA_INFO.format(name), topics.NEWEST)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", topics.EVERY)
        self._say_frame = speaker(self, FrameInfo, topics.FRAME.format(name), topics.NEWEST)
        self._newest = self._number = self._dropped = self._repeated = 0
        self._reported = 0
        listener = Listener(self)
        source = options.source or topics.SOURCE.format(name)
        profile = topics.NEWEST if options.reliable else topics.SENSOR
        listener.hear_message(Image, source, self._on_image, profile)
        self._contract.publish(codec.text_msg(self.camera.model_dump_json()))

    def _on_image(self, message: Image) -> None:
        """One picture: fitted and sent on with the time at which it was taken; refused where one as new has come.

        One that is much older means that the source's clock was set: it counts as new.
        """
        if not self.active:
            return
        stamp = decoding.stamp_of(message)
        self._trace.mark("heard", stamp)
        if self._newest - SECOND < stamp <= self._newest:
            self._repeated += 1
            return
        picture, colour = decoding.picture_of(message)
        fitted = fit_image(picture, self.camera, colour=colour, origin=self.settings.source_origin)
        self._count(stamp)
        name, wanted = self.camera.name, self.camera
        self._trace.mark("sent", stamp)
        self._image.publish(codec.image_msg(stamp, name, np.ascontiguousarray(fitted), wanted.colour))
        if self._raw.get_subscription_count():
            message.header.frame_id = name
            self._raw.publish(message)
        height, width = picture.shape[:2]
        self._info.publish(codec.pinhole_msg(stamp, name, height, width, wanted.field_of_view))
        self._say_frame(FrameInfo(stamp, name, self._number, self._dropped, self._repeated))
        if abs(stamp - self._reported) >= SECOND:
            self._reported = stamp
            self._report(stamp)

    def _count(self, stamp: int) -> None:
        """Number the picture, and count those that must have been lost before it."""
        rate = self.settings.rate
        if rate and self._newest:
            self._dropped += max(0, round((stamp - self._newest) * rate / SECOND) - 1)
        self._newest, self._number = stamp, self._number + 1

    def close(self) -> None:
        """The last word."""
        self._trace.write()

    def _report(self, stamp: int) -> None:
        counts = {"frames": self._number, "dropped": self._dropped, "repeated": self._repeated}
        values = [KeyValue(key=key, value=str(value)) for key, value in counts.items()]
        status = DiagnosticStatus(level=DiagnosticStatus.OK, name=f"camera {self.camera.name}", values=values)
        self._diagnostics.publish(DiagnosticArray(header=codec.header(stamp), status=[status]))


def main() -> int:
    return run(CameraNode)


if __name__ == "__main__":
    sys.exit(main())
