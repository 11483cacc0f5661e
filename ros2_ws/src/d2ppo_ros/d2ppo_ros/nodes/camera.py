"""One camera: takes pictures from a topic, publishes them as the policy gets them and as they came, numbered.

With a calibration's file it cuts out the part that has the contract's field of view before it resizes, and states that
lens. What forms its pictures (driver's settings, calibration, crop) is latched on `camera/NAME/setup`, for records.

A life-cycle node: `configure` checks its settings and states its side of the contract, `activate` begins to publish.
Drivers of real cameras are nodes of their own that publish `source/NAME/image`; everything behind that is the same.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError
from d2ppo_core.lens import crop_field_of_view, crop_for, read_calibrated
from d2ppo_core.observation import fit_image
from d2ppo_core.tasks import load_task, observation_spec

from .. import codec, decoding, topics
from ..lifecycle import AutoNode
from ..parameters import declare, parameter
from ..realsense.accounting import Arrivals
from ..records import SECOND, FrameInfo
from ..runtime import Listener, run, speaker
from ..trace import Trace

FOV = 0.5  # degrees: a view that is smaller by more than this is worth a word


@dataclass(frozen=True)
class CameraSettings:
    """Parameters of a camera's node."""

    task: str = parameter("lift_image", "the task whose contract says how the policy's pictures are")
    camera: str = parameter("robot0_eye_in_hand", "which of the task's cameras this is")
    source: str = parameter("", "topic of the pictures; empty: source/CAMERA/image")
    source_origin: str = parameter("top_left", "where the source's first row is", choices=("top_left", "bottom_left"))
    reliable: bool = parameter(True, "ask the source for every picture; false fits drivers that send as sensors do")
    calibration: str = parameter("", "file of `d2ppo calibrate`: its lens is stated, and cut to the contract's view")
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
        self._setup = self.create_publisher(String, topics.SETUP.format(name), topics.LATCHED)
        self._newest = self._number = self._dropped = self._repeated = 0
        self._reported = 0
        self._frame, self._arrivals = FrameInfo(0, name, 0), Arrivals()  # the driver's last word, and what it lost us
        self._source_info: CameraInfo | None = None
        self._calibrate()
        self._listen(options.source or topics.SOURCE.format(name))
        self._contract.publish(codec.text_msg(self.camera.model_dump_json()))
        self._say_setup(None)

    def _calibrate(self) -> None:
        """The lens, and the part of its picture that the policy sees; without a calibration all of it."""
        options = self.settings
        self._lens = read_calibrated(options.calibration) if options.calibration else None
        self._crop = crop_for(self._lens.sees, self.camera) if self._lens else None
        if self._lens and options.source_origin != "top_left":
            raise UserError(
                f"camera {self.camera.name}: a calibration holds for pictures with the first row on top, and "
                f"source_origin is {options.source_origin}; have the driver turn them, and calibrate anew"
            )
        wanted = self.camera.field_of_view
        if self._crop and (seen := crop_field_of_view(self._lens.sees, self._crop)) < wanted - FOV:
            text = f"camera {self.camera.name} sees only {seen:.1f} of the contract's {wanted:g} degrees"
            self.get_logger().warning(text)

    def _listen(self, source: str) -> None:
        name, listener = self.camera.name, Listener(self)
        profile = topics.NEWEST if self.settings.reliable else topics.SENSOR
        listener.hear(FrameInfo, topics.SOURCE_FRAME.format(name), self._on_frame, topics.EVERY)
        listener.hear_message(CameraInfo, topics.SOURCE_INFO.format(name), self._on_source_info, profile)
        listener.hear_message(String, topics.SOURCE_SETUP.format(name), self._on_setup, topics.LATCHED)
        listener.hear_message(Image, source, self._on_image, profile)

    def _on_frame(self, frame: FrameInfo) -> None:
        """What the driver says of a picture: before it, or after it."""
        self._frame = frame
        if self.active:
            self._arrivals.announced(frame.stamp)

    def _on_source_info(self, message: CameraInfo) -> None:
        self._source_info = message

    def _on_setup(self, message: String) -> None:
        """What the driver has set and read back."""
        self._say_setup(json.loads(message.data))

    def _say_setup(self, driver: Any) -> None:
        """Everything that forms the pictures."""
        lens = self._lens
        calibration = lens and {"file": str(lens.path), "camera": lens.camera, "made": lens.made, "digest": lens.digest,
                                "intrinsics": lens.sees.model_dump(mode="json")}  # fmt: skip
        about = {"camera": self.camera.name, "driver": driver, "calibration": calibration,
                 "crop": self._crop and vars(self._crop)}  # fmt: skip
        self._setup.publish(codec.text_msg(json.dumps(about)))

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
        fitted = fit_image(self._cut(picture), self.camera, colour=colour, origin=self.settings.source_origin)
        self._count(stamp)
        name, wanted = self.camera.name, self.camera
        self._trace.mark("sent", stamp)
        self._image.publish(codec.image_msg(stamp, name, np.ascontiguousarray(fitted), wanted.colour))
        if self._raw.get_subscription_count():
            message.header.frame_id = name
            self._raw.publish(message)
        self._info.publish(self._lens_of(stamp, *picture.shape[:2]))
        lost, repeated = self._losses()
        self._say_frame(FrameInfo(stamp, name, self._number, lost, repeated))
        if abs(stamp - self._reported) >= SECOND:
            self._reported = stamp
            self._report(stamp)

    def _cut(self, picture: np.ndarray) -> np.ndarray:
        """(h, w, 3): the part with the contract's field of view, of the size that was calibrated."""
        if self._lens is None:
            return picture
        if picture.shape[1::-1] != self._lens.sees.size:
            raise UserError(
                f"the pictures are {picture.shape[1]} x {picture.shape[0]}, and {self._lens.path} is for "
                f"{self._lens.sees.width} x {self._lens.sees.height}; open the camera so, or calibrate it at this size"
            )
        return np.ascontiguousarray(self._crop.of(picture))

    def _lens_of(self, stamp: int, height: int, width: int) -> CameraInfo:
        """How the raw picture was seen: as calibrated, else as the driver says, else as the contract wants it."""
        name, source, crop = self.camera.name, self._source_info, self._crop
        if self._lens is not None:
            sees, part = self._lens.sees, (crop.x, crop.y, crop.width, crop.height)
            return codec.lens_msg(stamp, name, sees.size, sees.matrix, sees.distortion, sees.model, part)
        if source is not None and (source.height, source.width) == (height, width):
            source.header = codec.header(stamp, name)
            return source
        return codec.pinhole_msg(stamp, name, height, width, self.camera.field_of_view)

    def _losses(self) -> tuple[int, int]:
        """Frames lost, and repeated, from the sensor to here."""
        lost = self._dropped + self._frame.dropped + self._arrivals.lost
        return lost, self._repeated + self._frame.repeated

    def _count(self, stamp: int) -> None:
        """Number the picture, and count those that must have been lost before it."""
        self._arrivals.came(stamp)
        rate = self.settings.rate
        if rate and self._newest:
            self._dropped += max(0, round((stamp - self._newest) * rate / SECOND) - 1)
        self._newest, self._number = stamp, self._number + 1

    def close(self) -> None:
        """The last word."""
        self._trace.write()

    def _report(self, stamp: int) -> None:
        lost, repeated = self._losses()
        counts = {"frames": self._number, "dropped": lost, "repeated": repeated}
        values = [KeyValue(key=key, value=str(value)) for key, value in counts.items()]
        status = DiagnosticStatus(level=DiagnosticStatus.OK, name=f"camera {self.camera.name}", values=values)
        self._diagnostics.publish(DiagnosticArray(header=codec.header(stamp), status=[status]))


def main() -> int:
    return run(CameraNode)


if __name__ == "__main__":
    sys.exit(main())
