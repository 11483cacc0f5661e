"""What stands in for the person who sets a trial up and judges it: puts arm and cube to the start that a seed names, as
the simulator would, and says when the cube is lifted. Services and topics are those of the simulator's node.

An arm that is being driven is not moved: it must have been let go of first. Only stand-ins may know the simulator.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from d2ppo_interfaces.srv import StartTrial
from rclpy.node import Node

from d2ppo_core.errors import UserError
from d2ppo_core.tasks import load_task
from d2ppo_sim.native.library import find_task_model
from d2ppo_sim.native.starts import draw_start

from .. import cell, codec, topics
from ..parameters import declare, parameter
from ..records import Episode
from ..runtime import DeadlineLoop, run, speaker
from ..standin.control import Control
from ..standin.settings import CUBE, OPEN

LIFTED = 0.04  # m over the table that the cube's middle must be: robosuite's success of Lift
SET_UP = 0.02, 0.005  # rad, m: an arm and a cube that are as near as this to their start stand there already


@dataclass(frozen=True)
class StageSettings:
    """Parameters of the node that sets the stand-in's trials up."""

    task: str = parameter("lift_image", "whose start states are drawn: a task with one arm and a cube")
    control: str = parameter("127.0.0.2:1400", "where the stand-in takes requests, HOST:PORT")
    start_patience: float = parameter(
        30.0, "how long the stand-in may take until it listens: launched together, either may be first", unit="s",
        low=0.0, high=600.0,
    )  # fmt: skip
    patience: float = parameter(4.0, "how long a driven arm may take to be let go of", unit="s", low=0.1, high=60.0)
    rate: float = parameter(20.0, "looks at the cube a second", unit="Hz", low=1.0, high=100.0)


class StandinStageNode(Node):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("standin_stage")
        self.settings = declare(self, StageSettings)
        self.finished, self.code = threading.Event(), 0
        task = find_task_model(load_task(self.settings.task).environment)
        self._facts, self._rest = task.facts, task.compiled().qpos0.copy()
        if [placement.name for placement in self._facts.placements] != ["cube"]:
            raise UserError(f"task '{self.settings.task}' has other objects than the stand-in's cube; use lift_image")
        host, _, port = self.settings.control.rpartition(":")
        self._host, self._port = host, int(port)
        self._lock = threading.Lock()
        self._episode = Episode(self.stamp(), "", 0, 0)
        self._say_episode = speaker(self, Episode, topics.EPISODE, topics.EVERY)
        self.create_service(StartTrial, topics.RESET, self._on_reset)
        self._loop = DeadlineLoop(self.settings.rate, self._look, "look")
        self._looking = Control(self._host, self._port, patience=self.settings.start_patience)
        self._loop.start()

    def stamp(self) -> int:
        """ns of the node's clock."""
        return self.get_clock().now().nanoseconds

    def start_of(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Joints (7,) rad, the cube's position (3,) m on the stand-in's table, its quaternion (4,) xyzw."""
        qpos = draw_start(self._facts, self._rest, seed, 0)
        cube = qpos[self._facts.placements[0].qpos :][:7]
        position = np.array([cube[0], cube[1], cell.SIMULATED_TABLE + CUBE])
        return qpos[list(self._facts.arms[0].qpos)], position, np.roll(cube[3:], -1)

    def _on_reset(self, request: StartTrial.Request, response: StartTrial.Response) -> StartTrial.Response:
        try:
            self._set_up(*self.start_of(request.seed))
        except UserError as error:
            response.message = str(error)
            return response
        with self._lock:
            self._episode = Episode(self.stamp(), request.trial, request.seed, 0)
        response.success, response.start = True, codec.time_msg(self.stamp())
        return response

    def _set_up(self, q: np.ndarray, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Wait until nothing drives the arm; raises a `UserError` with the stand-in's words."""
        control, deadline = Control(self._host, self._port), time.monotonic() + self.settings.patience
        try:
            while not self._stands(control, q, position):
                try:
                    control.ask("place", q=q.tolist(), width=OPEN)
                except UserError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
                    continue
                control.ask("cube", position=position.tolist(), quaternion=quaternion.tolist())
                return
        finally:
            control.close()

    def _stands(self, control: Control, q: np.ndarray, position: np.ndarray) -> bool:
        """Whether everything is there already, as after a set-up that nobody has used."""
        state, cube = control.ask("state"), control.ask("cube")
        turned, moved = np.abs(np.array(state["q"]) - q).max(), np.linalg.norm(np.array(cube["position"]) - position)
        return bool(turned < SET_UP[0] and moved < SET_UP[1] and abs(state["width"] - OPEN) < SET_UP[1])

    def _look(self) -> None:
        """The cube's height decides."""
        before = self._episode
        try:
            height = self._looking.ask("cube")["position"][2] - cell.SIMULATED_TABLE
        except (UserError, OSError) as error:
            self.get_logger().error(str(error))
            self.code = 1
            self.finished.set()
            raise
        with self._lock:
            if self._episode is not before:  # put back since: that was still the last trial's cube
                return
            lifted = before.success or height > LIFTED
            self._episode = replace(before, stamp=self.stamp(), step=before.step + 1, success=lifted)
            episode: Any = self._episode
        self._say_episode(episode)

    def close(self) -> None:
        """End the loop, hang up."""
        self._loop.stop()
        self._looking.close()


def main() -> int:
    return run(StandinStageNode)


if __name__ == "__main__":
    sys.exit(main())
