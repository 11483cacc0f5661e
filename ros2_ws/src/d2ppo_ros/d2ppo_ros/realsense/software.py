"""A software RealSense: the library's own device without hardware. Whoever has pictures feeds them in.

Everything behind it is the real library: pipeline, queues, frame numbers, time domains, options, metadata.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from d2ppo_core.errors import UserError

from .library import load
from .settings import Wanted

OPTIONS = {  # name: least, most, step, at first; as a D435's colour sensor has them
    "enable_auto_exposure": (0, 1, 1, 1),
    "auto_exposure_priority": (0, 1, 1, 1),
    "exposure": (1, 10000, 1, 156),
    "gain": (0, 128, 1, 64),
    "enable_auto_white_balance": (0, 1, 1, 1),
    "white_balance": (2800, 6500, 10, 4600),
    "power_line_frequency": (0, 3, 1, 3),
    "global_time_enabled": (0, 1, 1, 1),
}


class SoftwareCamera:
    """One of them. `device` is what a pipeline is given; any thread may `feed`."""

    def __init__(self, wanted: Wanted) -> None:
        self._rs, self.wanted = load(), wanted
        rs = self._rs
        self.device = rs.software_device()
        self.device.register_info(rs.camera_info.serial_number, wanted.serial)
        self.device.register_info(rs.camera_info.name, "software stand-in")
        self._sensor = self.device.add_sensor("RGB Camera")
        self._profile = self._sensor.add_video_stream(self._stream(), True).as_video_stream_profile()
        for name, (low, high, step, first) in OPTIONS.items():
            allowed = rs.option_range()
            allowed.min, allowed.max, allowed.step, allowed.default = low, high, step, first
            self._sensor.add_option(getattr(rs.option, name), allowed, True)
        self.device.create_matcher(rs.matchers.default)

    def _stream(self) -> Any:
        """The colour stream: a pinhole without distortion."""
        rs, wanted = self._rs, self.wanted
        lens, stream = rs.intrinsics(), rs.video_stream()
        lens.width, lens.height = wanted.width, wanted.height
        lens.model, lens.coeffs = rs.distortion.brown_conrady, [0.0] * 5
        lens.fx = lens.fy = wanted.height / 2 / float(np.tan(np.radians(wanted.field_of_view) / 2))
        lens.ppx, lens.ppy = wanted.width / 2, wanted.height / 2
        stream.type, stream.index, stream.uid, stream.fmt, stream.bpp = rs.stream.color, 0, 1, rs.format.rgb8, 3
        stream.width, stream.height, stream.fps, stream.intrinsics = wanted.width, wanted.height, wanted.fps, lens
        return stream

    def feed(self, picture: np.ndarray, stamp: int, number: int, domain: str = "global_time") -> None:
        """One frame: (h, w, 3) uint8 RGB, taken at `stamp` (ns); dropped by the library while nobody listens."""
        rs, size = self._rs, (self.wanted.height, self.wanted.width, 3)
        if picture.shape != size or picture.dtype != np.uint8:
            raise UserError(
                f"a picture for the stand-in of camera {self.wanted.name} is {picture.dtype} {picture.shape}; it must "
                f"be uint8 {size}: give renderer and driver the same width and height"
            )
        frame = rs.software_video_frame()
        frame.pixels, frame.bpp, frame.stride = np.ascontiguousarray(picture), 3, 3 * self.wanted.width
        frame.timestamp, frame.domain = stamp / 1e6, getattr(rs.timestamp_domain, domain)
        frame.frame_number, frame.profile = number, self._profile
        exposure = round(100 * self._sensor.get_option(rs.option.exposure))  # us
        self._sensor.set_metadata(rs.frame_metadata_value.actual_exposure, exposure)
        self._sensor.on_video_frame(frame)

    def set_option(self, name: str, value: float) -> None:
        """As if another program did."""
        self._sensor.set_option(getattr(self._rs.option, name), value)

    def record(self, path: str) -> Any:
        """Everything that is fed from now on goes to a .db3 file, too, until what is returned is closed."""
        return Recording(self._rs.recorder(path, self.device))


class Recording:
    """A film of a software camera, as the library's recorder makes it."""

    def __init__(self, recorder: Any) -> None:
        self._recorder, self.frames = recorder, 0
        self._sensor = recorder.query_sensors()[0]
        self._sensor.open(self._sensor.get_stream_profiles()[0])
        self._sensor.start(self._count)

    def _count(self, frame: Any) -> None:
        self.frames += 1

    def close(self) -> None:
        """End it; the file is whole once nothing of the recorder is left."""
        self._sensor.stop()
        self._sensor.close()
        del self._sensor, self._recorder
