"""The one module that knows `pyrealsense2`: a camera that is open, its frames, its settings.

A real camera, a software device and a recording go through the same calls; `attach` is the line in which they differ.
Pictures are (h, w, 3) uint8, RGB, first row on top, copied out of the library's buffers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2ppo_core.errors import UserError

from .settings import Wanted

NEEDED = (2, 56, 5)  # the first release in which a pipeline takes a software device
Attach = Callable[[Any, Any, Wanted], None]  # tells pipeline and config where frames come from
SETTLE = 0.05  # s between two tries to set an option: right after the start a camera may be busy
TRIES = 5


def load() -> Any:
    """The library."""
    try:
        import pyrealsense2
    except ImportError as error:
        raise UserError(
            f"RealSense cameras need pyrealsense2 ({error}); run `pip install 'pyrealsense2>=2.56.5'`, and "
            "`apt-get install libusb-1.0-0` where libusb is missing"
        ) from error
    version = tuple(int(part) for part in pyrealsense2.__version__.split(".")[:3])
    if version < NEEDED:
        raise UserError(
            f"pyrealsense2 {pyrealsense2.__version__} is too old; run `pip install --upgrade 'pyrealsense2>=2.56.5'`"
        )
    return pyrealsense2


@dataclass(frozen=True)
class Frame:
    """One colour frame, as the library hands it over."""

    number: int
    timestamp: float  # ms, in the clock that `domain` names
    domain: str
    received: int  # ns, this computer's clock
    picture: np.ndarray  # (h, w, 3) uint8 RGB
    exposure: float | None = None  # ms, that this frame really had, where the camera says it


@dataclass(frozen=True)
class Lens:
    """The factory's calibration of the colour stream."""

    width: int
    height: int
    matrix: tuple[float, ...]  # (9,) row by row, pixels
    model: str  # the library's word
    distortion: tuple[float, ...]  # (5,)


def plugged_in(rs: Any) -> dict[str, Any]:
    """Serial number -> device, of every camera that is plugged in."""
    return {device.get_info(rs.camera_info.serial_number): device for device in rs.context().query_devices()}


def attach_real(pipeline: Any, config: Any, wanted: Wanted) -> None:
    """The camera with this serial number. Asked for first: a pipeline would wait 15 s for one that is not there."""
    found = plugged_in(load())
    if wanted.serial not in found:
        raise UserError(
            f"camera {wanted.name} (serial number {wanted.serial}) is not plugged in; there are "
            f"{', '.join(found) or 'none'}: check cable and serials (`d2ppo doctor camera`)"
        )
    config.enable_device(wanted.serial)


def attach_file(pipeline: Any, config: Any, wanted: Wanted) -> None:
    """A recording, played once at the speed at which it was made."""
    config.enable_device_from_file(wanted.file, False)


def attach_software(devices: dict[str, Any]) -> Attach:
    """Software devices by camera name."""

    def attach(pipeline: Any, config: Any, wanted: Wanted) -> None:
        pipeline.set_device(devices[wanted.name])
        config.enable_device(wanted.serial)

    return attach


class Camera:
    """One open camera. Nothing of it is used again after `close`."""

    def __init__(self, wanted: Wanted, attach: Attach) -> None:
        self._rs, self.wanted = load(), wanted
        rs = self._rs
        self._pipeline, config = rs.pipeline(), rs.config()
        try:
            attach(self._pipeline, config, wanted)  # the line in which real, software and recorded cameras differ
            if wanted.file:  # it is what it is
                config.enable_stream(rs.stream.color)
            else:
                config.enable_stream(rs.stream.color, wanted.width, wanted.height, rs.format.rgb8, wanted.fps)
            self._prepare(config)
            self._profile = self._pipeline.start(config)
        except RuntimeError as error:
            size = f"{wanted.width} x {wanted.height} at {wanted.fps} Hz"
            raise UserError(
                f"camera {wanted.name} ({wanted.file or wanted.serial}) does not start with {size} ({error}); choose "
                "what it offers (`d2ppo doctor camera`), and see that nobody else uses it"
            ) from error
        self.device = self._profile.get_device()
        self.sensor = self._colour_sensor(self.device)
        self._order = self._colours()

    def _colours(self) -> int:
        """Step through the last axis that makes it RGB; a recording may have been made in another order."""
        found = self._profile.get_stream(self._rs.stream.color).format()
        order = {self._rs.format.rgb8: 1, self._rs.format.bgr8: -1}.get(found)
        if order is None:
            self.close()
            raise UserError(f"{self.wanted.file} holds colour pictures as {found.name}; record them as rgb8 or bgr8")
        return order

    def _prepare(self, config: Any) -> None:
        """Before the start, where the camera lets us: a queue of one frame (an old picture is of no use), and times on
        this computer's clock from the first frame on.
        """
        sensor = self._colour_sensor(config.resolve(self._rs.pipeline_wrapper(self._pipeline)).get_device())
        for option in (self._rs.option.frames_queue_size, self._rs.option.global_time_enabled):
            with suppress(RuntimeError):  # the newest is taken out of a longer queue, too; `fix` sets the other again
                sensor.set_option(option, 1)

    def _colour_sensor(self, device: Any) -> Any:
        """The one whose options change the colour pictures; the D405 and D401 have a single sensor for all."""
        sensors = list(device.query_sensors())
        colour = [s for s in sensors if s.get_info(self._rs.camera_info.name) == "RGB Camera"]
        return (colour or sensors)[0]

    def read(self, seconds: float) -> Frame | None:
        """The newest frame, waiting for it at most so long; None: none came. Older ones that wait are thrown away."""
        rs = self._rs
        there, frames = self._pipeline.try_wait_for_frames(round(1000 * seconds))
        received = time.time_ns()
        colour = frames.get_color_frame() if there else None
        if not colour:
            return None
        exposure, kind = None, rs.frame_metadata_value.actual_exposure
        if colour.supports_frame_metadata(kind):
            exposure = colour.get_frame_metadata(kind) / 1000  # us -> ms
        return Frame(
            colour.get_frame_number(), colour.get_timestamp(), colour.get_frame_timestamp_domain().name, received,
            np.array(np.asanyarray(colour.get_data())[:, :, :: self._order]), exposure,
        )  # fmt: skip

    def lens(self) -> Lens:
        """What the camera says of its own lens at this resolution."""
        seen = self._profile.get_stream(self._rs.stream.color).as_video_stream_profile().get_intrinsics()
        matrix = (seen.fx, 0.0, seen.ppx, 0.0, seen.fy, seen.ppy, 0.0, 0.0, 1.0)
        return Lens(seen.width, seen.height, matrix, seen.model.name, tuple(float(c) for c in seen.coeffs))

    def about(self) -> dict[str, str]:
        """Which camera this is."""
        kinds = self._rs.camera_info
        asked = {
            "name": kinds.name, "serial": kinds.serial_number, "firmware": kinds.firmware_version,
            "usb": kinds.usb_type_descriptor, "product": kinds.product_id,
        }  # fmt: skip
        return {key: self.device.get_info(kind) for key, kind in asked.items() if self.device.supports(kind)}

    # --- options ------------------------------------------------------------------------------------------------------

    def fix(self) -> None:
        """Set everything that forms the picture, after the start. Raises a `UserError` where the camera cannot.

        A recording cannot be set: it has what it was taken with.
        """
        if self.wanted.file:
            return
        if not (self._has("exposure") and self._has("enable_auto_exposure")):
            raise UserError(
                f"camera {self.wanted.name} ({self.about().get('name', self.wanted.serial)}) does not let its exposure "
                "be fixed, and a policy needs one look; update its firmware, or take another camera"
            )
        for name, value in asked_of(self.wanted, self._microseconds()).items():
            if self._has(name):
                self._set(name, value)

    def read_back(self) -> dict[str, float]:
        """What the camera says now of each option that forms the picture; exposure in the sensor's own unit."""
        return {name: float(self.sensor.get_option(self._option(name))) for name in asked_of(self.wanted, False)
                if self._has(name)}  # fmt: skip

    def _microseconds(self) -> bool:
        """Whether this sensor counts exposure in us: a stereo module does, the RGB camera in 100 us."""
        return self.sensor.get_info(self._rs.camera_info.name) != "RGB Camera"

    def _option(self, name: str) -> Any:
        return getattr(self._rs.option, name)

    def _has(self, name: str) -> bool:
        return bool(self.sensor.supports(self._option(name)))

    def _set(self, name: str, value: float) -> None:
        """Set one option and see that it holds."""
        option, sensor = self._option(name), self.sensor
        allowed, where = sensor.get_option_range(option), f"camera {self.wanted.name}: {name}"
        if not allowed.min <= value <= allowed.max:
            raise UserError(f"{where} is {value:g}; this camera takes {allowed.min:g} to {allowed.max:g}")
        why = ""
        for _ in range(TRIES):
            try:
                sensor.set_option(option, value)
                if abs(sensor.get_option(option) - value) <= max(allowed.step, 1e-6):
                    return
                why = f"it says {sensor.get_option(option):g}"
            except RuntimeError as error:
                why = str(error)
            time.sleep(SETTLE)
        raise UserError(f"{where} cannot be set to {value:g} ({why}); update the firmware, or close what else uses it")

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop it. May hang: call it in a watched thread."""
        self._pipeline.stop()

    def reset(self) -> None:
        """Have the hardware start anew, as if it had been unplugged; it is away for some seconds then."""
        self.device.hardware_reset()


def asked_of(wanted: Wanted, microseconds: bool) -> dict[str, float]:
    """The library's options by name, in the order in which they must be set: automatics off before what they drive."""
    return {
        "enable_auto_exposure": 0.0,
        "auto_exposure_priority": 0.0,  # else pictures come more slowly in the dark
        "exposure": round(wanted.exposure * (1000 if microseconds else 10)),
        "gain": wanted.gain,
        "enable_auto_white_balance": 0.0,
        "white_balance": wanted.white_balance,
        "power_line_frequency": float(wanted.power_line),
        "global_time_enabled": 1.0,
    }


def reset_plugged_in(wanted: Wanted) -> None:
    """Reset the camera of this serial number if it is there."""
    device = plugged_in(load()).get(wanted.serial)
    if device is not None:
        device.hardware_reset()
