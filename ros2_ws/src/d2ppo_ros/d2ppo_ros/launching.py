"""A scenario as a description for ROS's launch: what every launch file of d2ppo_bringup returns.

ROS's launch runs in ROS's own Python, which need not have torch or d2ppo_core: it reads the arguments from
`scenarios.py`, and asks the nodes' Python (`python:=`, else the `python3` of PATH) which processes they mean.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import fields
from typing import Any

from launch.actions import DeclareLaunchArgument, EmitEvent, LogInfo, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited, ShutdownProcess
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

from .parameters import default_of
from .scenarios import SCENARIOS

PACKAGE = "d2ppo_ros"
USER_ERROR = 2  # exit code: the last line is one sentence for the user
PYTHON = "interpreter of the nodes, where torch lives in a virtual environment; empty: the python3 of PATH"


def description(scenario: str) -> LaunchDescription:
    """Its arguments, and the nodes that follow from them."""
    arguments = [
        DeclareLaunchArgument(
            field.name, default_value=_text(default_of(field)), description=field.metadata["why"],
            choices=list(field.metadata["choices"]) or None,
        )
        for field in fields(SCENARIOS[scenario])
    ]  # fmt: skip
    python = DeclareLaunchArgument("python", default_value="", description=PYTHON)
    return LaunchDescription([*arguments, python, OpaqueFunction(function=_bring_up, args=[scenario])])


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bring_up(context: LaunchContext, scenario: str) -> list[Any]:
    """Every node in its order, and what happens when one ends."""
    names = [field.name for field in fields(SCENARIOS[scenario])]
    given = [f"{name}={LaunchConfiguration(name).perform(context)}" for name in names]
    python = LaunchConfiguration("python").perform(context)
    made = _asked(python or "python3", [scenario, *given], dict(context.environment))
    nodes = {
        node["name"]: Node(
            package=PACKAGE, executable=node["module"].rpartition(".")[2], exec_name=node["name"],
            prefix=shlex.quote(python) if python else None, ros_arguments=node["arguments"],
            additional_env=made["environment"], output="screen",
        )
        for node in made["nodes"]
    }  # fmt: skip
    ending = Ending(nodes, {node["name"] for node in made["nodes"] if node["spare"]})
    return [RegisterEventHandler(OnProcessExit(on_exit=ending.on_exit)), *nodes.values()]


def _asked(python: str, words: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The scenario's processes as `graph.py` states them."""
    command = [python, "-m", f"{PACKAGE}.graph", *words]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{python} does not run ({error.strerror}); give python:=FILE, an interpreter") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        lacks = f"{said} ({python} cannot run d2ppo; python:=FILE names another interpreter for the nodes)"
        raise RuntimeError(said if done.returncode == USER_ERROR else lacks)
    return json.loads(done.stdout)


class Ending:
    """Stops the nodes one after the other as soon as one ends that the others need, the last started first.

    A node that ends by itself and is not the last, or that fails, makes `ros2 launch` return 1. When launch itself is
    interrupted it stops all at once, and this stays out of it: every node says its own last word.
    """

    def __init__(self, nodes: dict[str, Node], spare: set[str]) -> None:
        self._running, self._spare, self._last = dict(nodes), spare, [*nodes][-1]
        self._failure, self._ending = "", False

    def on_exit(self, event: ProcessExited, context: LaunchContext) -> list[Any]:
        """Handler of every process's end."""
        name = next((name for name, node in self._running.items() if node is event.action), "")
        if not name or context.is_shutdown:
            return []
        del self._running[name]
        if name in self._spare and not self._ending:
            return [LogInfo(msg=f"{name} ended (exit code {event.returncode}); the rest goes on")]
        if not self._ending:
            self._ending, code = True, event.returncode
            self._failure = f"{name} ended (exit code {code})" if name != self._last or code else ""
        if self._running:
            last = [*self._running.values()][-1]
            return [EmitEvent(event=ShutdownProcess(process_matcher=lambda action: action is last))]
        if self._failure:
            raise RuntimeError(f"{self._failure}; everything was stopped")
        return [EmitEvent(event=Shutdown(reason=f"{name} ended"))]
