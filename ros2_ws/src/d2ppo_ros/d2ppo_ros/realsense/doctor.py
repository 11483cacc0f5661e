"""`d2ppo doctor camera`: is there a RealSense, does it keep its rate and its settings, can its times be believed?

A camera that is plugged in is opened as the driver would open it, and watched for some seconds. `--software` does the
same with a stand-in, to see that the library works here.
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from d2ppo_core.cli import Command, Parser
from d2ppo_core.doctor import conclude
from d2ppo_core.errors import UserError
from d2ppo_core.machine import BROKEN, MISSING, OK, WARNING, Row

USB3 = "3"
BUFFER = 4 << 20  # bytes: four VGA pictures
SLOW, LOST = 0.9, 0.02  # share of the rate that must come; share of frames that may be lost


def main(arguments: list[str]) -> int:
    """Print the findings; 0, or 1 where something needed does not work."""
    options = _options(arguments)
    return conclude(examine(options), options, "doctor-camera.json", 28)


def _options(arguments: list[str]) -> argparse.Namespace:
    from .settings import RealsenseSettings

    parser = Parser(prog="d2ppo doctor camera", description="What the RealSense cameras here can do.")
    parser.add_argument("--serial", nargs="*", default=[], help="only these cameras; else all that are plugged in")
    parser.add_argument("--software", action="store_true", help="look at a software stand-in instead")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each is watched (default 3)")
    for one in fields(RealsenseSettings):
        if one.name in ("width", "height", "fps"):
            parser.add_argument(f"--{one.name}", type=int, default=one.default, help=one.metadata["why"])
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--run-dir", metavar="DIR", help="also write them to DIR/doctor-camera.json")
    found = parser.parse_args(arguments)
    if not 0.5 <= found.seconds <= 600:
        raise UserError(f"--seconds {found.seconds:g} must be from 0.5 to 600")
    return found


def examine(options: argparse.Namespace) -> list[Row]:
    """All findings."""
    from .library import load, plugged_in

    try:
        rs = load()
    except UserError as error:
        return [_sockets_row(), Row("pyrealsense2", MISSING, str(error), "pip install 'pyrealsense2>=2.56.5'")]
    rows = [_sockets_row(), Row("pyrealsense2", OK, rs.__version__)]
    if options.software:
        return rows + _watched(options, "software", "stand-in")
    there = plugged_in(rs)
    absent = [serial for serial in options.serial if serial not in there]
    rows += [Row(f"camera {serial}", MISSING, "not plugged in", "check the cable, and `lsusb`") for serial in absent]
    if not there and not absent:
        fix = "check the cable, the udev rules of librealsense, and `lsusb`; --software tries the library without one"
        rows.append(Row("cameras", MISSING, "none is plugged in", fix))
    for serial, device in there.items():
        if serial in (options.serial or there):
            rows += [_usb_row(rs, serial, device), *_watched(options, "real", serial)]
    return rows


def _sockets_row(limit: Path = Path("/proc/sys/net/core/rmem_max")) -> Row:
    """Whether the kernel gives a socket what `launch/params/this_machine.xml` asks for."""
    try:
        given = int(limit.read_text())
    except OSError:  # in some containers the kernel does not say
        return Row("sockets", OK, "their buffers are not known here")
    found = f"buffers of up to {given / 2**20:.1f} MiB"
    fix = f"sudo sysctl -w net.core.rmem_max={BUFFER}: with less, a VGA picture comes some 10 ms later, or not at all"
    return Row("sockets", *(OK, found) if given >= BUFFER else (WARNING, found, fix))


def _usb_row(rs: Any, serial: str, device: Any) -> Row:
    """Which camera, and by which cable."""
    kinds = rs.camera_info
    said = {kind: device.get_info(kind) if device.supports(kind) else "unknown"
            for kind in (kinds.name, kinds.firmware_version, kinds.usb_type_descriptor)}  # fmt: skip
    found = f"{said[kinds.name]}, firmware {said[kinds.firmware_version]}, USB {said[kinds.usb_type_descriptor]}"
    if said[kinds.usb_type_descriptor].startswith(USB3):
        return Row(f"camera {serial}", OK, found)
    return Row(f"camera {serial}", WARNING, found, "use a USB 3 port and cable, each camera its own controller")


@dataclass
class Look:
    """What came of one camera in some seconds."""

    ages: list[float] = field(default_factory=list)  # s, of frames when they came

    def take(self, picture: Any) -> None:
        """As the driver's `on_picture`."""
        self.ages.append((time.time_ns() - picture.time) / 1e9)


def _watched(options: argparse.Namespace, device: str, serial: str) -> list[Row]:
    """One camera, opened as the driver opens it, for some seconds."""
    from .driver import CameraThread
    from .library import attach_real, attach_software
    from .settings import RealsenseSettings, wanted
    from .software import SoftwareCamera

    settings = RealsenseSettings(
        cameras=[serial], serials=[serial], device=device, width=options.width, height=options.height, fps=options.fps
    )
    (asked,) = wanted(settings)
    look, ended, attach = Look(), threading.Event(), attach_real
    if device == "software":
        soft = SoftwareCamera(asked)
        attach = attach_software({serial: soft.device})
        threading.Thread(target=_feed, args=(soft, ended), daemon=True).start()
    thread = CameraThread(asked, attach, settings, look.take, lambda setup: None)
    thread.start()
    deadline = time.monotonic() + settings.first + settings.open_patience
    while not look.ages and thread.failure is None and time.monotonic() < deadline:
        time.sleep(0.02)
    ended.wait(options.seconds if look.ages else 0.0)
    rates = thread.rates()
    thread.end()
    ended.set()
    return _rows(serial, thread, look, rates.frames, rates.dropped, options.fps)


def _feed(soft: Any, ended: threading.Event) -> None:
    """Grey pictures at the camera's rate."""
    import numpy as np

    picture, number = np.full((soft.wanted.height, soft.wanted.width, 3), 90, dtype=np.uint8), 0
    while not ended.wait(1 / soft.wanted.fps):
        number += 1
        soft.feed(picture, time.time_ns(), number)


def _rows(name: str, thread: Any, look: Look, frames: float, dropped: float, fps: int) -> list[Row]:
    """What was seen, judged."""
    if not look.ages:
        said = str(thread.failure or thread.said or "no frame came")
        return [Row(f"camera {name}: pictures", BROKEN, said, "free the camera, check cable and USB controller")]
    good = frames >= SLOW * fps and dropped <= LOST
    found = f"{frames:.1f} of {fps} a second, {dropped:.1%} lost"
    fix = "" if good else "give the camera a USB 3 controller of its own, less exposure, or a smaller picture"
    rows = [Row(f"camera {name}: pictures", OK if good else WARNING, found, fix)]
    ages = sorted(look.ages)
    found = f"{1000 * ages[len(ages) // 2]:.1f} ms old at the median, {1000 * ages[-1]:.1f} at most"
    if thread.clock.ours > LOST * len(ages):  # the library needs a moment to find out how its clock goes
        why = thread.clock.why or "they are believed now"
        rows.append(Row(f"camera {name}: times", WARNING, f"{thread.clock.ours} by arrival: {why}",
                        "update firmware and kernel patches for metadata, or measure receive_latency"))  # fmt: skip
    else:
        rows.append(Row(f"camera {name}: times", OK, f"the camera's own; {found}"))
    setup, changed = thread.setup, thread.setup.changed
    held = ", ".join(f"{key} {value:g}" for key, value in setup.options.items())
    fix = f"changed meanwhile: {', '.join(changed)}; close what else uses it" if changed else ""
    rows.append(Row(f"camera {name}: settings", BROKEN if changed else OK, held, fix))
    lens = setup.lens
    found = f"{lens.width} x {lens.height}, f {lens.matrix[0]:.1f} {lens.matrix[4]:.1f} px, {lens.model}"
    return [*rows, Row(f"camera {name}: lens", OK, found)]


DOCTOR = Command("RealSense cameras: rate, losses, times, settings", main)
