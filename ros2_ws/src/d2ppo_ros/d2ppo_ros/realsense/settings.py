"""Parameters of the RealSense driver, and what they ask of one camera."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2ppo_core.errors import UserError

from ..parameters import parameter
from .link import Patience

NS = 1_000_000_000
POWER_LINE = {"off": 0, "50Hz": 1, "60Hz": 2}  # the library's numbers


@dataclass(frozen=True)
class RealsenseSettings:
    """How the cameras are opened. A list of one value holds for all cameras, a longer one names a value for each."""

    cameras: list[str] = parameter([], "names of the cameras, as the task's contract has them")
    serials: list[str] = parameter([], "serial number of each (`d2ppo doctor camera` lists those that are plugged in)")
    device: str = parameter(
        "real", "what is behind them: a stand-in shows what comes on standin/CAMERA/picture",
        choices=("real", "software", "playback"),
    )  # fmt: skip
    files: list[str] = parameter([], "playback: the recording of each camera (.db3; .bag of older libraries)")
    fields_of_view: list[float] = parameter(
        [60.0], "software: vertical, of the lens that is stood in for", unit="degrees", low=1.0, high=170.0
    )
    width: int = parameter(640, "of the colour pictures", unit="pixels", low=16, high=4096)
    height: int = parameter(480, "of the colour pictures", unit="pixels", low=16, high=4096)
    fps: int = parameter(30, "pictures a second", unit="Hz", low=5, high=90)
    exposure: list[float] = parameter(
        [12.0], "fixed, for one look at all times of the day; less than 1/fps, or pictures come more slowly; 12 ms is "
        "what diffusion_policy takes", unit="ms", low=0.01, high=200.0,
    )  # fmt: skip
    gain: list[float] = parameter([16.0], "fixed; noise grows with it", low=0.0, high=248.0)
    white_balance: list[float] = parameter([4600.0], "fixed; of the room's lamps", unit="K", low=2000.0, high=10000.0)
    power_line: str = parameter("50Hz", "of the lamps: against flicker", choices=tuple(POWER_LINE))
    wait: float = parameter(0.15, "one wait for a frame", unit="s", low=0.1, high=0.2)
    misses: int = parameter(3, "waits in a row without a frame: the camera is stale", low=1, high=20)
    rebuild: float = parameter(1.0, "silence until it is stopped and opened anew", unit="s", low=0.3, high=30.0)
    first: float = parameter(5.0, "silence that is borne after opening", unit="s", low=1.0, high=60.0)
    stop_patience: float = parameter(
        2.0, "a stop that takes longer is left to itself: reports tell of deadlocks", unit="s", low=0.1, high=30.0
    )
    open_patience: float = parameter(20.0, "the same for opening", unit="s", low=1.0, high=120.0)
    readback: float = parameter(1.0, "how often exposure and white balance are read back", unit="s", low=0.1, high=60.0)
    latency: float = parameter(
        0.0, "from light on the sensor to the camera's own stamp (`camera` in latency.yaml): taken off every stamp",
        unit="s", low=-0.1, high=0.5,
    )  # fmt: skip
    receive_latency: float = parameter(
        0.045, "from light to a picture's arrival, where the camera's own clock cannot be believed: exposure, read-out "
        "and transfer at 30 Hz", unit="s", low=0.0, high=0.5,
    )  # fmt: skip

    @property
    def patience(self) -> Patience:
        """Of each camera's state machine."""
        return Patience(self.misses, round(self.rebuild * NS), round(self.first * NS))


@dataclass(frozen=True)
class Wanted:
    """One camera, as it is to be opened."""

    name: str
    serial: str
    width: int
    height: int
    fps: int
    exposure: float  # ms
    gain: float
    white_balance: float  # K
    power_line: int
    file: str = ""
    field_of_view: float = 60.0  # degrees, of a software camera


def wanted(settings: RealsenseSettings) -> list[Wanted]:
    """Every camera of the settings; a `UserError` where lists do not fit, or a number cannot work."""
    names = settings.cameras
    if not names:
        raise UserError("realsense: no camera is named; set cameras to the names in the task's contract, and serials")
    if len(set(names)) < len(names):
        raise UserError(f"realsense: cameras={names} names one twice; each camera needs a name of its own")
    serials = _serials(settings)
    files = [""] * len(names)
    if settings.device == "playback":
        files = _each(settings, "files")
        if absent := [file for file in files if not Path(file).is_file()]:
            raise UserError(f"realsense: files: there is no {absent[0]}; name the recording of each camera")
    numbers = {key: _each(settings, key) for key in ("exposure", "gain", "white_balance", "fields_of_view")}
    for name, exposure in zip(names, numbers["exposure"], strict=True):
        if exposure * settings.fps >= 1000:
            raise UserError(
                f"realsense: an exposure of {exposure:g} ms of camera {name} does not fit {settings.fps} pictures a "
                f"second; choose less than {1000 / settings.fps:.1f} ms, or a lower fps"
            )
    return [
        Wanted(
            name, serials[i], settings.width, settings.height, settings.fps, numbers["exposure"][i],
            numbers["gain"][i], numbers["white_balance"][i], POWER_LINE[settings.power_line], files[i],
            numbers["fields_of_view"][i],
        )
        for i, name in enumerate(names)
    ]  # fmt: skip


def _serials(settings: RealsenseSettings) -> list[str]:
    """One for each camera; a recording knows its own, a software camera needs just any."""
    names, given = settings.cameras, settings.serials
    if bare := [serial for serial in given if not isinstance(serial, str)]:
        raise UserError(f"realsense: the serial number {bare[0]} came as a number; write it in quotes: '{bare[0]}'")
    if settings.device != "real" and not given:
        return [f"{settings.device}-{name}" for name in names]
    if len(given) != len(names) or len(set(given)) < len(given):
        raise UserError(
            f"realsense: {len(names)} cameras ({', '.join(names)}) and the serial numbers {given}; give each camera "
            "its own, in the same order (`d2ppo doctor camera` lists them)"
        )
    return [serial.lstrip("_") for serial in given]  # ROS's own driver wants an underscore before the digits


def _each(settings: RealsenseSettings, key: str) -> list[Any]:
    """The list's values, one for each camera."""
    values, count = getattr(settings, key), len(settings.cameras)
    if len(values) not in (1, count) or (key == "files" and len(values) != count):
        raise UserError(
            f"realsense: {key} holds {len(values)} values for {count} cameras ({', '.join(settings.cameras)}); give "
            "one for each" + ("" if key == "files" else ", or one for all")
        )
    return list(values) * (count if len(values) == 1 else 1)
