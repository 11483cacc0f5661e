"""Executor, policy and simulator in one process, in lockstep and without ROS: a trial as its control steps.

The same parts as in the nodes: each state is one tick of the executor, a request is answered at once from the same
observation grid, and the command moves the simulator on by one control step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from d2ppo_core.errors import UserError
from d2ppo_core.inference import Actor, load_policy
from d2ppo_core.observation import fit_image
from d2ppo_core.tasks import load_task
from d2ppo_sim.robot import SimulatedRobot

from ..contracts import RobotContract, require_agreement
from ..executor.counts import Counts
from ..executor.executor import Executor
from ..executor.settings import ExecutorSettings
from ..grid import ObservationGrid
from ..records import SECOND, ArmState, Chunk, ChunkRequest, Command, Kind, RobotState
from ..servo import Servo

FIRST = SECOND  # ns: the first state's stamp; 0 would look like no time at all
NO_CHUNK = -1


@dataclass(frozen=True)
class Trial:
    """One trial of T control steps with n arms; positions in m, velocities in m/s, world frame."""

    seed: int
    success: bool
    chunk: np.ndarray  # (T,) int: which chunk the step comes from; NO_CHUNK: the robot kept its last goals, or was held
    goal: np.ndarray  # (T, n, 3) where the controller is drawn to
    reference: np.ndarray  # (T, n, 3) velocity of the reference that is commanded; NaN: the command was a delta
    measured: np.ndarray  # (T + 1, n, 3) where the arms were before each step, and after the last
    counts: Counts  # of the executor

    @property
    def steps(self) -> int:
        """T."""
        return len(self.chunk)


class SimLoop:
    """A checkpoint and its task's simulator.

    Args:
        seed: of the policy's noise, together with trial and chunk.
    """

    def __init__(self, checkpoint: str | Path, seed: int = 0) -> None:
        torch.set_num_threads(1)
        self.actor = Actor(load_policy(checkpoint), seed)
        self.spec = self.actor.policy.spec
        self.robot = SimulatedRobot(load_task(self.spec.task), limits=self.spec.action.limits)
        self.step = SECOND // self.spec.action.control_hz  # ns
        cameras = {camera.name: camera for camera in self.robot.observation.cameras}
        robot = RobotContract(name="simulator", lowdim=self.robot.observation.lowdim, action=self.robot.action)
        require_agreement(self.spec, robot, cameras)

    def run(self, settings: ExecutorSettings, seed: int) -> Trial:
        """The trial that `seed` names, until success or time-out."""
        robot, servo, now, rows = self.robot, Servo(self.robot.action), FIRST, []
        executor = Executor(settings, robot.action, self.spec.horizon, self.spec.executed)
        grid, success, held = ObservationGrid(self.spec.observation, self.step), False, True
        robot.reset(seed)
        servo.hold(self._arms(now))
        executor.start(str(seed), seed, self._state(now), now)
        while not robot.over:
            arms = self._look(executor, grid, now)
            command = self._command(executor, grid, now)
            if not (command.kind is Kind.HOLD and held):  # who is held stays where he was when it began
                servo.obey(command, arms)
            held = command.kind is Kind.HOLD
            delta = command.kind is Kind.DELTA
            success |= bool((robot.step(command.action) if delta else robot.servo(servo.goals)).success[0])
            rows.append(_row(command, servo, arms))
            now += self.step
        chunk, goal, reference, measured = (np.array(column) for column in zip(*rows, strict=True))
        last = np.array([[arm.position for arm in robot.arms()]])  # (1, n, 3)
        return Trial(seed, success, chunk, goal, reference, np.concatenate([measured, last]), executor.counts)

    def _state(self, now: int) -> RobotState:
        return RobotState(now, "", 0, dict(self.robot.values))

    def _arms(self, now: int) -> list[ArmState]:
        return [ArmState(now, a.q, a.dq, a.position, a.rotation, a.wrench) for a in self.robot.arms()]

    def _look(self, executor: Executor, grid: ObservationGrid, now: int) -> list[ArmState]:
        """Everything that is measured at `now`, to whom it concerns."""
        state, arms = self._state(now), self._arms(now)
        grid.add_state(state)
        cameras = self.robot.observation.cameras
        pictures = self.robot.pictures(self.robot.view()) if cameras else {}
        for camera in cameras:
            grid.add_image(camera.name, now, fit_image(pictures[camera.key], camera, colour=camera.colour))
        executor.on_state(state)
        for number, arm in enumerate(arms):
            executor.on_arm(number, arm)
        return arms

    def _command(self, executor: Executor, grid: ObservationGrid, now: int) -> Command:
        command, request = executor.tick(now)
        if request is not None:
            executor.on_chunk(self._answer(request, grid), now)
        if command is None:
            command, _ = executor.tick(now)
        if command is None:
            raise UserError(f"the executor does not go on: {executor.refusal or 'it got no chunk'}")
        return command

    def _answer(self, request: ChunkRequest, grid: ObservationGrid) -> Chunk:
        raw = grid.assemble(request.stamp, request.start)
        actions = self.actor.predict(raw, [request.seed], [request.index], request.prefix, request.frozen)[0]
        reference = self.spec.action.delta_reference
        return Chunk(request.stamp, request.trial, request.index, self.step, 0, "", self.spec.executed, actions,
                     reference)  # fmt: skip

    def close(self) -> None:
        """Free the simulator."""
        self.robot.close()


def _row(command: Command, servo: Servo, arms: list[ArmState]) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Of one control step with n arms: chunk, goals (n, 3), the reference's velocities (n, 3), positions (n, 3)."""
    moving = command.kind in (Kind.DELTA, Kind.POSE)
    velocity = [target.velocity[:3] for target in command.targets] or [np.full(3, np.nan)] * len(arms)
    return (
        command.chunk if moving else NO_CHUNK,
        np.array([goal.position for goal in servo.goals]),
        np.array(velocity),
        np.array([arm.position for arm in arms]),
    )
