"""`d2ppo up`: every node in its own process, without ROS's launch.

Starts the processes of `graph.py` in order with the parameter files of the launch package, shows what they print,
forwards signals, and stops them in the opposite order: whoever commands is stopped before whoever must still hear the
last stop. A process that ends by itself ends everything, unless the system can go on without it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from d2ppo_core.cli import HELP, Command

from . import graph
from .alone import require_alone
from .parameters import table
from .scenarios import SCENARIOS, parse

GRACE = 5.0  # s between asking a process to stop and killing it


def main(arguments: list[str]) -> int:
    """`d2ppo up SCENARIO key=value ...`; exit code 0, or what a node that failed returned."""
    if not arguments or any(argument in HELP for argument in arguments):
        print(usage())
        return 0
    scenario, *rest = arguments
    system = graph.system(scenario, parse(scenario, rest))
    require_alone(system)
    return Supervisor(system.processes, system.files, system.environment).run()


def usage() -> str:
    """What `d2ppo up --help` prints."""
    parts = []
    for scenario, options in SCENARIOS.items():
        rows = [f"  {name:<13} {why} (default {default})" + (f"; {limits}" if limits else "")
                for name, default, limits, why in table(options)]
        parts.append(f"{scenario}: {options.__doc__}\n" + "\n".join(rows))
    return (
        "d2ppo up: run a policy through the ROS 2 nodes.\n\n"
        f"usage: d2ppo up {'|'.join(SCENARIOS)} checkpoint=FILE [key=value ...]\n\n" + "\n\n".join(parts) + "\n\n"
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
            print(f"d2ppo up: {len(self.wanted)} nodes are started; Ctrl-C stops them in order", file=sys.stderr)
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
                if name in graph.SPARE and name != last:
                    print(f"d2ppo up: {name} ended ({_said(code)}); the rest goes on", file=sys.stderr)
                    continue
                if name != last or code:
                    print(f"d2ppo up: {name} ended ({_said(code)}); everything is stopped", file=sys.stderr)
                return code if code > 0 else 1 if code or name != last else 0
        print("d2ppo up: interrupted; the nodes are stopped in order", file=sys.stderr)
        return 130

    def end(self) -> None:
        """From another thread: `run` stops all and returns."""
        self._signal.set()

    def stop(self) -> None:
        """In the opposite order of the start; each has `GRACE` to say its last word."""
        for process in reversed(self.wanted):
            running = self.running.pop(process.name, None)
            if running is None:
                continue
            if not ended_in_time(running):
                print(f"d2ppo up: {process.name} did not end and is killed", file=sys.stderr)
                kill(running)
        time.sleep(0.05)  # for the threads that show the last lines


def ended_in_time(process: subprocess.Popen[str]) -> bool:
    """Ask a process to end; whether it has within `GRACE`."""
    process.send_signal(signal.SIGCONT)  # one that is stopped cannot end
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return False
    return True


def kill(process: subprocess.Popen[str]) -> None:
    """Give it no choice."""
    process.kill()
    process.wait()


def _said(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


UP = Command("run a policy through the ROS 2 nodes: in the simulator, or on a robot", main)
