"""The stand-in's hand: franky-sim's gripper server with fingers that may get stuck."""

from __future__ import annotations

from typing import Any

from franky_sim.franka_gripper_server import FrankaGripperServer

from .faults import Faults


class GripperServer(FrankaGripperServer):
    """A stuck hand takes commands, does not move, and does not say that they have ended.

    As on the robot, a command that comes while another one runs ends the first without an answer.
    """

    def __init__(self, robot: Any, host: str, faults: Faults) -> None:
        super().__init__(robot, host)
        self._faults = faults
        self.commands = 0  # moves and grasps that were begun

    def _start_motion(self, *arguments: Any) -> None:
        self.commands += 1
        super()._start_motion(*arguments)

    def _post_process_commands(self) -> None:
        if self._faults.stuck_gripper:
            self._robot.set_hand_goal(self._robot.hand_width, 0.05, 70.0)
            self._settling_steps = 0
            return
        super()._post_process_commands()
