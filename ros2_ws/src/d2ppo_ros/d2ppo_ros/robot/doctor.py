"""`d2ppo doctor robot`: can this computer drive a Franka arm at 1 kHz, and does the arm answer? Nothing moves.

Without addresses it looks at this computer alone; with `--host` it connects as the driver would, reads for some
seconds, and disconnects. `--standin` does that with a stand-in, to see that the library works here.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from d2ppo_core.cli import Command, Parser
from d2ppo_core.doctor import conclude
from d2ppo_core.errors import UserError
from d2ppo_core.machine import BROKEN, MISSING, OK, WARNING, Row

from . import versions
from .limits import MODELS
from .reading import SUCCESS_STOP, SUCCESS_WARN
from .settings import ArmSettings

ROUND_TRIP = 0.5  # ms: half of the robot's millisecond; the rest is for the control code
STANDIN = "127.0.0.31"  # where the doctor's own stand-in is


def main(arguments: list[str]) -> int:
    """Print the findings; 0, or 1 where something needed does not work."""
    parser = Parser(prog="d2ppo doctor robot", description="Whether this computer can drive a Franka arm.")
    parser.add_argument("--model", choices=MODELS, default="panda", help="which arm (default panda)")
    parser.add_argument("--host", action="append", default=[], help="address of a control box; once for each arm")
    parser.add_argument("--standin", action="store_true", help="connect to a stand-in instead (an fr3)")
    parser.add_argument("--drive", action="store_true", help="also hold the arm where it stands for the seconds, to "
                        "measure how many commands come in time: keep the stop button in your hand")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=3.0, help="how long states are read (default 3)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--run-dir", metavar="DIR", help="also write them to DIR/doctor-robot.json")
    options = parser.parse_args(arguments)
    if not 0.5 <= options.seconds <= 600:
        raise UserError("--seconds must be from 0.5 to 600")
    return conclude(examine(options), options, "doctor-robot.json", 24)


def examine(options: argparse.Namespace) -> list[Row]:
    """The computer, the library, then each arm."""
    model = "fr3" if options.standin else options.model
    rows = [kernel_row(), priority_row(), governor_row(), library_row(model)]
    hosts = [STANDIN] if options.standin else options.host
    if not hosts:
        return [*rows, Row("arm", WARNING, "none was asked", "name its address: d2ppo doctor robot --host 172.16.0.2")]
    if rows[-1].state != OK:
        return rows
    with ExitStack() as stack:
        if options.standin:
            from .pilot import standin

            stack.enter_context(standin(host=STANDIN))
        for host in hosts:
            rows += [] if options.standin else [round_trip_row(host)]
            rows += arm_rows(host, model, options.seconds, options.drive)
    return rows


def kernel_row(realtime: Path = Path("/sys/kernel/realtime"), release: str = "") -> Row:
    """Is the kernel a real-time one?"""
    release = release or platform.release()
    if realtime.exists() and realtime.read_text().strip() == "1":
        return Row("kernel", OK, f"{release}, real-time")
    fix = "install a PREEMPT_RT kernel (Ubuntu: pro enable realtime-kernel), then set realtime: true"
    return Row("kernel", WARNING, f"{release}, not real-time: cycles will be lost under load", fix)


def priority_row() -> Row:
    """May we ask for real-time priority?"""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    if os.geteuid() == 0 or limit == resource.RLIM_INFINITY or limit >= 80:
        return Row("priority", OK, "real-time priority is allowed")
    fix = "add '@realtime - rtprio 99' and '@realtime - memlock 102400' to /etc/security/limits.conf and join the group"
    return Row("priority", WARNING, f"real-time priority is allowed up to {limit}", fix)


def governor_row(folder: Path = Path("/sys/devices/system/cpu")) -> Row:
    """Do the cores stay awake?"""
    found = {path.read_text().strip() for path in folder.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    if not found:
        return Row("governor", OK, "the cores' frequency is not ours to set (a virtual machine, or fixed)")
    if found == {"performance"}:
        return Row("governor", OK, "performance")
    return Row("governor", WARNING, f"{', '.join(sorted(found))}: cores slow down between two cycles",
               "sudo cpupower frequency-set -g performance")  # fmt: skip


def library_row(model: str) -> Row:
    """The client library, of the build for this arm."""
    try:
        found = versions.check(model)
        import franky

        return Row("franky", OK, f"{found}, its limits are set by us" if hasattr(franky, "Robot") else found)
    except UserError as error:
        state = BROKEN if versions.installed() else MISSING
        return Row("franky", state, str(error), versions.install_line(model))
    except ImportError as error:
        return Row("franky", BROKEN, f"it does not import: {error}", versions.install_line(model))


def round_trip_row(host: str) -> Row:
    """How long a packet takes there and back, by ping."""
    name = f"round trip {host}"
    try:
        ping = ["ping", "-c", "50", "-i", "0.02", "-q", host]
        done = subprocess.run(ping, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Row(name, WARNING, f"ping does not run ({error})", "apt-get install iputils-ping")
    return judge_ping(name, done.stdout)


def judge_ping(name: str, said: str) -> Row:
    """What ping's last lines say."""
    lost = re.search(r"([\d.]+)% packet loss", said)
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/", said)
    if not lost or not times or float(lost.group(1)) == 100:
        return Row(name, BROKEN, "nobody answers", "connect the control box by cable, in its own network")
    mean, most = float(times.group(2)), float(times.group(3))
    found = f"mean {mean:.2f} ms, at most {most:.2f} ms, {float(lost.group(1)):g}% lost"
    if most > ROUND_TRIP or float(lost.group(1)) > 0:
        return Row(name, WARNING, found, f"more than {ROUND_TRIP} ms: a cable without switches, no USB network adapter")
    return Row(name, OK, found)


def arm_rows(host: str, model: str, seconds: float, drive: bool) -> list[Row]:
    """Connect as the driver would; read; perhaps hold it where it stands."""
    from .client import ArmClient

    client = ArmClient(ArmSettings(hosts=[host], robot_model=model), 0)
    client.start()
    try:
        end = time.monotonic() + client.settings.connect_timeout + 2.0
        while client.connections == 0 and time.monotonic() < end:
            time.sleep(0.02)
        if client.connections == 0:
            return [Row(f"arm {host}", BROKEN, client.fault(time.monotonic_ns()), "see what it says")]
        rows = [states_row(host, _gaps(client, seconds)), _mode_row(host, client)]
        return rows + ([_driven_row(host, client, seconds)] if drive and rows[-1].state == OK else [])
    finally:
        client.close()


def _gaps(client: object, seconds: float) -> list[float]:
    """s between new states."""
    found, last, end = [], None, time.monotonic() + seconds
    while time.monotonic() < end:
        reading = client.reading  # type: ignore[attr-defined]
        if reading is not None and reading is not last:
            if last is not None:
                found.append((reading.received - last.received) / 1e9)
            last = reading
        time.sleep(0.0005)
    return found


def states_row(host: str, gaps: Sequence[float]) -> Row:
    """Do its states come?"""
    name = f"states {host}"
    if len(gaps) < 10:
        return Row(name, BROKEN, f"{len(gaps)} states came", "is a firewall in the way of UDP?")
    found = f"{len(gaps)} read, gaps median {np.median(gaps) * 1000:.1f} ms, at most {max(gaps) * 1000:.0f} ms"
    if max(gaps) > 0.02:
        return Row(name, WARNING, found, "20 ms without a state make a robot stop: less load, a real-time kernel")
    return Row(name, OK, found)


def _mode_row(host: str, client: object) -> Row:
    reading, fault = client.reading, client.fault(time.monotonic_ns())  # type: ignore[attr-defined]
    name = f"mode {host}"
    return Row(name, BROKEN, fault, "see what it says") if fault else Row(name, OK, reading.mode)


def _driven_row(host: str, client: object, seconds: float) -> Row:
    """Hold it where it stands, and count how many commands came in time."""
    client.take()  # type: ignore[attr-defined]
    rates, end = [], time.monotonic() + seconds + 1.0
    while time.monotonic() < end:
        reading = client.reading  # type: ignore[attr-defined]
        if reading is not None and reading.driven and reading.success > 0:
            rates.append(reading.success)
        time.sleep(0.01)
    return success_row(host, rates, client.fault(time.monotonic_ns()))  # type: ignore[attr-defined]


def success_row(host: str, rates: Sequence[float], fault: str) -> Row:
    """Share of commands that came in time: libfranka's own test warns below 0.95 and fails below 0.90."""
    name = f"success rate {host}"
    if fault or not rates:
        return Row(name, BROKEN, fault or "the arm did not let itself be driven", "see what it says")
    least, found = min(rates), f"mean {np.mean(rates):.3f}, at least {min(rates):.3f}"
    if least >= SUCCESS_WARN:
        return Row(name, OK, found)
    fix = "a real-time kernel, the performance governor, a direct cable, less load"
    return Row(name, BROKEN if least < SUCCESS_STOP else WARNING, found, fix)


DOCTOR = Command("whether this computer can drive a Franka arm: kernel, governor, network, library, states", main)
