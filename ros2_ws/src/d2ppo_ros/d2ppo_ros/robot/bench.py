"""`d2ppo bench arm`: how an arm follows its references. The driver's own servo loop moves the stand-in around a circle,
told 20 times a second of the robot's time where to be, and what the arm did is compared with it, tick by tick.

Everything is timed by the robot's clock, so that a busy machine does not change the numbers. They are a simulator's:
a real arm has friction that no number here knows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.cli import HELP, Command
from d2ppo_core.contract import ActionSpec
from d2ppo_core.errors import UserError

from ..parameters import build, default_of, parameter, table
from ..records import SECOND, Kind, State, Target
from ..records import Command as RobotCommand
from ..standin.control import Control
from .driver import Driver, Phase, robot_of
from .settings import ArmSettings

RADIUS, SPEED = 0.06, 0.126  # m, m/s: the circle
STEP = 0.05  # s between two setpoints
WINDOW = 0.04  # s: accelerations are those of positions smoothed over so long


@dataclass(frozen=True)
class BenchOptions:
    """Options of `d2ppo bench arm`."""

    seconds: float = parameter(6.0, "of robot time that are judged", unit="s", low=1.0, high=600.0)
    stiffness: float = parameter(2000.0, "of the controller", unit="N/m", low=50.0, high=3000.0)
    rotational_stiffness: float = parameter(100.0, "of the controller", unit="Nm/rad", low=5.0, high=300.0)
    rate: float = parameter(200.0, "of references", unit="Hz", low=100.0, high=500.0)
    host: str = parameter("127.0.0.30", "local address of the stand-in")
    json: bool = parameter(False, "print the numbers as JSON")
    run_dir: str = parameter("", "folder for arm.json")


@dataclass(frozen=True)
class Followed:
    """How well a path was followed."""

    lag: float  # s by which the arm is late
    rms: float  # m, at that lag
    speed_spread: float  # standard deviation of the speed over its mean
    acceleration: float  # m/s^2, root mean square; the ideal circle's is speed^2 / radius
    real_time: float  # robot time to wall time
    ticks: int  # of the servo loop
    worst_gap: float  # s between two of them
    held_back: int  # cycles in which a ceiling acted


@contextmanager
def standin(*words: str, host: str, seconds: float = 30.0) -> Iterator[Control]:
    """A stand-in in a process of its own, and the door to its faults."""
    command = [sys.executable, "-m", "d2ppo_ros.standin.arm", f"host={host}", "control=0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            why = process.stderr.read().strip().splitlines() or ["it said nothing"]  # type: ignore[union-attr]
            raise UserError(f"the stand-in did not start: {why[-1].removeprefix('d2ppo: ')}")
        address, _, port = line.split()[-1].rpartition(":")
        control = Control(address, int(port), seconds)
        yield control
        control.close()
    finally:
        process.terminate()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(so: Any, seconds: float, what: str) -> None:
    """Until `so()`; a `UserError` names what did not come about."""
    end = time.monotonic() + seconds
    while not so():
        if time.monotonic() > end:
            raise UserError(f"{what} within {seconds:g} s")
        time.sleep(0.005)


class PatientClock:
    """A steady clock for which no gap is longer than 20 ms: the bench judges following, not how busy the machine is."""

    LONGEST = 20_000_000  # ns

    def __init__(self) -> None:
        self._real = self._now = time.monotonic_ns()

    def __call__(self) -> int:
        """ns."""
        real = time.monotonic_ns()
        self._now, self._real = self._now + min(real - self._real, self.LONGEST), real
        return self._now


class Pilot:
    """Safety and executor for a driver that has neither: armed, and told where to be."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self._number = driver, 0

    def cycle(self, state: State = State.ARMED) -> None:
        """A heartbeat, and one cycle of the servo loop."""
        self.driver.heartbeat(state)
        self.driver.tick()

    def keep(self) -> None:
        """The executor is alive, and wants nothing new."""
        self.driver.obey(self._command(Kind.KEEP), 0)

    def take(self, seconds: float = 10.0) -> None:
        """Connect and arm; returns when the arms are driven."""
        driver = self.driver
        wait_until(lambda: not driver.fault(time.monotonic_ns()), seconds,
                   f"the arm does not get ready ({driver.fault(time.monotonic_ns())})")  # fmt: skip

        def driven() -> bool:
            self.cycle(State.READY if driver.phase is Phase.IDLE and driver.stopped else State.ARMED)
            return driver.phase is Phase.DRIVING

        self.cycle(State.READY)
        wait_until(driven, seconds, "the arm does not let itself be driven")

    def pose(self, targets: tuple[Target, ...], ahead: float) -> None:
        """Be there `ahead` s from now."""
        self.driver.obey(replace(self._command(Kind.POSE), targets=targets), -round(ahead * SECOND))

    def delta(self, action: np.ndarray) -> None:
        """A raw action (Da,)."""
        self.driver.obey(replace(self._command(Kind.DELTA), action=action), 0)

    def _command(self, kind: Kind) -> RobotCommand:
        self._number += 1
        return RobotCommand(time.time_ns(), "bench", self._number, kind)


def circle(time_s: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Offset (..., 3) m from the start and velocity (..., 3) m/s; the speed grows over the first second."""
    t = np.asarray(time_s, dtype=float)
    angle = np.where(t < 1.0, t * t / 2, t - 0.5) * SPEED / RADIUS
    rate = np.minimum(t, 1.0) * SPEED
    zero = np.zeros_like(t)
    offset = RADIUS * np.stack([np.cos(angle) - 1, np.sin(angle), zero], axis=-1)
    return offset, rate[..., None] * np.stack([-np.sin(angle), np.cos(angle), zero], axis=-1)


def drive_circle(driver: Driver, seconds: float, rate: float) -> tuple[float, np.ndarray, int, float]:
    """Robot time of the start, the path's start (3,) in the robot's base, cycles, worst gap between two in s."""
    pilot = Pilot(driver)
    pilot.take()
    client, frames = driver.clients[0], driver.frames[0]
    begin, ee = client.reading.time, client.reading.ee
    start, rotation = frames.site(ee)
    quaternion = Rotation.from_matrix(rotation).as_quat()
    due, ticks, worst, last, told = time.monotonic(), 0, 0.0, time.monotonic(), -1
    while (now := client.reading.time - begin) < seconds + 1.5:
        if int(now / STEP) > told:
            told = int(now / STEP)
            offset, velocity = circle((told + 1) * STEP)
            twist = np.concatenate([velocity, np.zeros(3)])
            pilot.pose((Target(start + frames.turn @ offset, quaternion, twist, np.zeros(6), 0.0),),
                       (told + 1) * STEP - now)  # fmt: skip
        pilot.keep()
        pilot.cycle()
        worst, last, ticks = max(worst, time.monotonic() - last), time.monotonic(), ticks + 1
        if driver.phase is not Phase.DRIVING:
            raise UserError(f"the arm was stopped: {driver.stopped or driver.fault(time.monotonic_ns())}")
        due = max(due + 1 / rate, time.monotonic() - 0.05)
        time.sleep(max(0.0, due - time.monotonic()))
    return begin, ee[:3, 3], ticks, worst


def judge(rows: np.ndarray, begin: float, start: np.ndarray, seconds: float) -> dict[str, float]:
    """Compare what was done, rows (T, 11) of time and position each tick, with the circle that was asked for."""
    t, position = rows[:, 0] - begin, rows[:, 1:4] - start
    judged = (t > 1.5) & (t < 1.5 + seconds - 0.2)
    errors = []
    for lag in np.arange(-0.05, 0.3, 0.001):
        wanted = circle(t[judged] - lag)[0]
        errors.append((float(np.sqrt(((position[judged] - wanted) ** 2).sum(-1).mean())), float(lag)))
    rms, lag = min(errors)
    smooth = _smoothed(position, round(WINDOW / 0.001))
    velocity = np.gradient(smooth, 0.001, axis=0)
    acceleration = np.gradient(velocity, 0.001, axis=0)
    speed = np.linalg.norm(velocity[judged], axis=1)
    return {
        "lag": lag, "rms": rms, "speed_spread": float(speed.std() / speed.mean()),
        "acceleration": float(np.sqrt((acceleration[judged] ** 2).sum(1).mean())),
    }  # fmt: skip


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """(T, 3) convolved with a Hann window of so many ticks."""
    window = np.hanning(width + 2)[1:-1]
    return np.stack([np.convolve(column, window / window.sum(), mode="same") for column in values.T], axis=1)


def measure(options: BenchOptions) -> Followed:
    """One circle on a stand-in of its own."""
    settings = ArmSettings(
        hosts=[options.host], robot_model="fr3", gripper=False, stiffness=options.stiffness,
        rotational_stiffness=options.rotational_stiffness, rate=options.rate, base_position=[0.0, 0.0, 0.0],
        error_clip=0.03, box_low=[], box_high=[], clearance=0.0, tilt=0.0,
    )  # fmt: skip
    with standin(host=options.host) as control:
        driver = robot_of(settings, ActionSpec(limits="robot"), PatientClock())
        driver.start()
        try:
            control.ask("record")
            wall = time.monotonic()
            begin, start, ticks, worst = drive_circle(driver, options.seconds, options.rate)
            wall = time.monotonic() - wall
            rows = np.array(control.ask("trace")["rows"])
            held = driver.changed
        finally:
            driver.close()
    moved = rows[rows[:, 0] >= begin]
    return Followed(
        **judge(moved, begin, start, options.seconds), real_time=(options.seconds + 1.5) / wall, ticks=ticks,
        worst_gap=worst, held_back=held,
    )  # fmt: skip


def parse(words: list[str]) -> BenchOptions:
    """key=value words."""
    kinds = {name: type(default_of(field)) for name, field in BenchOptions.__dataclass_fields__.items()}
    values: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        name = name.replace("--", "").replace("-", "_")
        if not sign or name not in kinds:
            raise UserError(f"'{word}' is no option of `d2ppo bench arm`; give {', '.join(kinds)} as key=value")
        try:
            values[name] = {"true": True, "false": False}.get(text, text) if kinds[name] is bool else kinds[name](text)
        except ValueError:
            values[name] = text  # `build` says what it should be
    return build(BenchOptions, values, "d2ppo bench arm")


def main(arguments: list[str]) -> int:
    """Measure and print."""
    if any(argument in HELP for argument in arguments):
        rows = [f"  {name:<22} {why} (default {default})" for name, default, _, why in table(BenchOptions)]
        print("usage: d2ppo bench arm [key=value ...]\n\n" + "\n".join(rows))
        return 0
    options = parse(arguments)
    found = measure(options)
    report = {"options": asdict(options), **asdict(found)}
    if options.run_dir:
        path = Path(options.run_dir) / "arm.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report) if options.json else shown(options, found))
    return 0


def shown(options: BenchOptions, found: Followed) -> str:
    """The numbers for a person."""
    return (
        f"circle of {RADIUS * 1000:.0f} mm radius at {SPEED:.3f} m/s, {options.seconds:g} s of robot time, setpoints "
        f"every {STEP * 1000:.0f} ms, references at {options.rate:g} Hz, K {options.stiffness:g} N/m\n"
        f"  lag                {found.lag * 1000:.0f} ms\n"
        f"  error at that lag  {found.rms * 1000:.1f} mm rms\n"
        f"  speed std/mean     {found.speed_spread:.3f}\n"
        f"  acceleration       {found.acceleration:.2f} m/s^2 rms (ideal {SPEED**2 / RADIUS:.2f})\n"
        f"  robot time         {found.real_time:.2f} of wall time; {found.ticks} cycles, worst gap "
        f"{found.worst_gap * 1000:.0f} ms, {found.held_back} held back by a ceiling"
    )


BENCH = Command("how an arm follows its references: lag, error, acceleration on a stand-in", main)
