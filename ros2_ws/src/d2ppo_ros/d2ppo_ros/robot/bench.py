"""`d2ppo bench arm`: how an arm follows its references, and how the servo loop keeps its deadlines. The driver's own
loop moves the stand-in around a circle, told 20 times a second of the robot's time where to be.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2ppo_core.cli import HELP, Command
from d2ppo_core.contract import ActionSpec
from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json
from d2ppo_core.progress import ProgressBar

from ..parameters import build, default_of, parameter, table
from .circle import MISS, RADIUS, SPEED, STEP, WARM, Followed, drive_circle, judge_all
from .driver import robot_of
from .pilot import PatientClock, standin
from .settings import ArmSettings


@dataclass(frozen=True)
class BenchOptions:
    """Options of `d2ppo bench arm`."""

    seconds: float = parameter(6.0, "of robot time that are judged, minute by minute: 1800 for a soak", unit="s",
                               low=1.0, high=3500.0)
    stiffness: float = parameter(2000.0, "of the controller", unit="N/m", low=50.0, high=3000.0)
    rotational_stiffness: float = parameter(100.0, "of the controller", unit="Nm/rad", low=5.0, high=300.0)
    rate: float = parameter(200.0, "of references", unit="Hz", low=100.0, high=500.0)
    host: str = parameter("127.0.0.30", "local address of the stand-in")
    json: bool = parameter(False, "print the numbers as JSON")
    run_dir: str = parameter("", "folder for arm.json")


@dataclass(frozen=True)
class Loop:
    """How the servo loop kept its deadlines, in wall time."""

    ticks: int
    late: dict[str, float]  # s behind the deadline: quantiles, and the largest
    misses: int  # cycles more than 50 ms late
    held_back: int  # cycles in which a ceiling acted
    real_time: float  # robot time to wall time
    lost: int  # commands that the arm missed in a row, at most
    cpu: float  # cores that this process used
    load: tuple[float, float]  # of the machine, mean of a minute, before and after


def measure(options: BenchOptions) -> tuple[list[Followed], Loop]:
    """One drive on a stand-in of its own."""
    settings = ArmSettings(
        hosts=[options.host], robot_model="fr3", gripper=False, stiffness=options.stiffness,
        rotational_stiffness=options.rotational_stiffness, rate=options.rate, base_position=[0.0, 0.0, 0.0],
        error_clip=0.03, box_low=[], box_high=[], clearance=0.0, tilt=0.0,
    )  # fmt: skip
    load = os.getloadavg()[0]
    with standin(host=options.host, seconds=120.0) as control:
        driver = robot_of(settings, ActionSpec(limits="robot"), PatientClock())
        driver.start()
        try:
            control.ask("record")
            wall, cpu = time.monotonic(), time.process_time()
            with ProgressBar("circling", round(options.seconds + WARM)) as bar:
                begin, start, late = drive_circle(driver, options.seconds, options.rate, bar)
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
            lost = control.ask("state")["lost"]
        finally:
            driver.close()
        found = judge_all(control, begin, start, options.seconds)
    quantiles = {"median": 0.5, "99 %": 0.99, "99.9 %": 0.999, "largest": 1.0}
    loop = Loop(
        ticks=len(late), late={name: float(np.quantile(late, share)) for name, share in quantiles.items()},
        misses=int((late > MISS).sum()), held_back=driver.changed, real_time=(options.seconds + WARM) / wall, lost=lost,
        cpu=cpu / wall, load=(load, os.getloadavg()[0]),
    )  # fmt: skip
    return found, loop


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
    found, loop = measure(options)
    report = {"options": asdict(options), "pieces": [asdict(piece) for piece in found], "loop": asdict(loop)}
    if options.run_dir:
        path = Path(options.run_dir) / "arm.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
    print(json.dumps(report) if options.json else shown(options, found, loop))
    return 0


def shown(options: BenchOptions, found: list[Followed], loop: Loop) -> str:
    """The numbers for a person: medians of the minutes, and the worst."""

    def spread(name: str, scale: float, digits: int) -> str:
        values = [scale * getattr(piece, name) for piece in found]
        worst = f" (worst minute {max(values):.{digits}f})" if len(values) > 1 else ""
        return f"{np.median(values):.{digits}f}{worst}"

    late = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in loop.late.items())
    return (
        f"circle of {RADIUS * 1000:.0f} mm radius at {SPEED:.3f} m/s, {options.seconds:g} s of robot time, setpoints "
        f"every {STEP * 1000:.0f} ms, references at {options.rate:g} Hz, K {options.stiffness:g} N/m\n"
        f"  lag                {spread('lag', 1000, 0)} ms\n"
        f"  error at that lag  {spread('rms', 1000, 1)} mm rms\n"
        f"  speed std/mean     {spread('speed_spread', 1, 3)}\n"
        f"  acceleration       {spread('acceleration', 1, 2)} m/s^2 rms (ideal {SPEED**2 / RADIUS:.2f})\n"
        f"servo loop, {loop.ticks} cycles of {1000 / options.rate:g} ms (wall time)\n"
        f"  late               {late}; {loop.misses} more than {MISS * 1000:.0f} ms\n"
        f"  robot time         {loop.real_time:.3f} of wall time; at most {loop.lost} commands lost in a row; "
        f"{loop.held_back} cycles held back by a ceiling\n"
        f"  machine            {loop.cpu:.2f} cores by the driver; load {loop.load[0]:.2f} before, "
        f"{loop.load[1]:.2f} after"
    )


BENCH = Command("how an arm follows its references: lag, error, acceleration on a stand-in", main)
