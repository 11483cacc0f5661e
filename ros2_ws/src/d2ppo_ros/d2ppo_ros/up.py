"""`d2ppo up`: every node in its own process, without ROS's launch.

Starts the processes of `graph.py` in order with the parameter files of the launch package, shows what they print,
forwards signals, and stops them in the opposite order: whoever commands is stopped before whoever must still hear the
last stop. A process that ends by itself ends everything, unless the system can go on without it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from d2ppo_core.cli import HELP, Command
from d2ppo_core.errors import UserError
from d2ppo_core.machine import MIXTURE_FIX, installed, ros_mixture

from . import graph
from .parameters import build, default_of, parameter, table

GRACE = 5.0  # s between asking a process to stop and killing it
SPARE = ("recorder",)  # what the system goes on without: its end is said, and must not stop the arm


@dataclass(frozen=True)
class UpOptions(graph.SimulationOptions):
    """`d2ppo up sim`: what is started, and what is run then."""

    trials: int = parameter(3, "trials to run one after the other; 0: none, it stays up until it is interrupted", low=0)
    first_seed: int = parameter(100000, "seed of the first trial; the others follow it", low=0, high=2**32 - 1)
    run_dir: str = parameter("", "folder for trials.json, the outcome of every trial")
    domain: int = parameter(-1, "ROS domain; -1: as the environment has it", low=-1, high=232)


def main(arguments: list[str]) -> int:
    """`d2ppo up SCENARIO key=value ...`; exit code 0, or what a node that failed returned."""
    if not arguments or arguments[0] in HELP or any(a in HELP for a in arguments):
        print(usage())
        return 0
    scenario, *rest = arguments
    if scenario != "sim":
        raise UserError(f"there is nothing called '{scenario}' to bring up; choose sim")
    options = parse(rest)
    mixture = ros_mixture(installed(), os.environ)
    if mixture:
        raise UserError(f"{mixture} cannot be used together; {MIXTURE_FIX}")
    processes = graph.simulation(options)
    scenario_file = "lockstep" if options.lockstep else "sim"
    if options.trials:
        processes.append(_trials(options))
    environment = graph.environment()
    if options.domain >= 0:
        environment["ROS_DOMAIN_ID"] = str(options.domain)
    return Supervisor(processes, graph.parameter_files(scenario_file, options.params), environment).run()


def _trials(options: UpOptions) -> graph.Process:
    out = str(Path(options.run_dir).absolute() / "trials.json") if options.run_dir else ""
    return graph.Process("trials", f"{graph.NODES}.run_trials", {
        "trials": options.trials, "first_seed": options.first_seed, "record": bool(options.record), "out": out,
    })  # fmt: skip


def parse(arguments: list[str]) -> UpOptions:
    """key=value words as options; numbers and yes/no as such."""
    kinds = {field.name: type(default_of(field)) for field in fields(UpOptions)}
    values: dict[str, Any] = {}
    for word in arguments:
        name, sign, text = word.partition("=")
        if not sign or name not in kinds:
            raise UserError(f"'{word}' is no option of `d2ppo up sim`; give {', '.join(kinds)} as key=value")
        values[name] = _value(kinds[name], text)
    return build(UpOptions, values, "d2ppo up sim")


def _value(kind: type, text: str) -> Any:
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text  # `build` says what it should be


def usage() -> str:
    """What `d2ppo up --help` prints."""
    rows = [f"  {name:<13} {why} (default {default})" + (f"; {limits}" if limits else "")
            for name, default, limits, why in table(UpOptions)]
    return (
        "d2ppo up: run a policy through the ROS 2 nodes.\n\n"
        "usage: d2ppo up sim checkpoint=FILE [key=value ...]\n\n" + "\n".join(rows) + "\n\n"
        "Examples:\n"
        "  d2ppo up sim checkpoint=runs/demo/finetuned/policy.safetensors\n"
        "  d2ppo up sim checkpoint=runs/demo/finetuned/policy.safetensors lockstep=true trials=20 run_dir=runs/ros\n"
        "  d2ppo up sim checkpoint=P.safetensors executor=rtc delay=0.05 record=runs/records"
    )


class Supervisor:
    """Processes that belong together."""

    def __init__(self, processes: list[graph.Process], files: list[Path], environment: dict[str, str]) -> None:
        self.wanted, self._files, self._environment = processes, files, environment
        self.running: dict[str, subprocess.Popen[str]] = {}
        self._signal = threading.Event()
        self._width = max(len(process.name) for process in processes)

    def run(self) -> int:
        """Start all, wait for the first that ends or for a signal, stop all; the exit code."""
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda *_: self._signal.set())
        try:
            for process in self.wanted:
                self._start(process)
            return self._watch()
        finally:
            self.stop()

    def _start(self, process: graph.Process) -> None:
        """In a process group of its own: Ctrl-C in the terminal reaches us alone, and we stop them in order."""
        started = subprocess.Popen(
            graph.command(process, self._files), env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.running[process.name] = started
        threading.Thread(target=self._show, args=(process.name, started), daemon=True).start()

    def _show(self, name: str, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:  # type: ignore[union-attr]
            print(line if name == "trials" else f"[{name:<{self._width}}] {line}", end="", flush=True)

    def _watch(self) -> int:
        last = self.wanted[-1].name
        while not self._signal.wait(0.1):
            for name, process in list(self.running.items()):
                code = process.poll()
                if code is None:
                    continue
                del self.running[name]
                if name in SPARE:
                    print(f"d2ppo up: {name} ended ({_said(code)}); the rest goes on", file=sys.stderr)
                    continue
                if name != last or code:
                    print(f"d2ppo up: {name} ended ({_said(code)}); everything is stopped", file=sys.stderr)
                return code if code > 0 else 1 if code or name != last else 0
        return 130

    def stop(self) -> None:
        """In the opposite order of the start; each has `GRACE` to say its last word."""
        for process in reversed(self.wanted):
            running = self.running.pop(process.name, None)
            if running is None:
                continue
            running.send_signal(signal.SIGCONT)  # one that is stopped cannot end
            running.terminate()
            try:
                running.wait(GRACE)
            except subprocess.TimeoutExpired:
                print(f"d2ppo up: {process.name} did not end and is killed", file=sys.stderr)
                running.kill()
                running.wait()
        time.sleep(0.05)  # for the threads that show the last lines


def _said(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


UP = Command("run a policy through the ROS 2 nodes: in the simulator", main)
