"""Which command at which time: the scheduler between policy and robot, without ROS."""

from __future__ import annotations

import math
from typing import Any

from d2ppo_core.contract import ActionSpec

from ..records import SECOND, ArmState, Chunk, ChunkRequest, Command, Kind, RobotState
from .asking import Asking, Expected
from .counts import Counts
from .follow import Follower
from .latency import Latency
from .schedule import Schedule
from .settings import ExecutorSettings, check, nanoseconds


class Executor:
    """One command for each tick, and now and then a request for the next chunk. All times: int ns of one clock.

    receding: step i of a chunk goes out as DELTA at its first step's time + i steps; after Ta steps the next chunk is
    asked for, from the newest observation. The other modes put chunks on a grid of steps that begins with the first
    chunk's observation, and send the reference trajectory of `follow.py` as POSE.
    Where the arm is known to be late they send what shall be `action_latency` from now.
    In lockstep a tick without command means: first the chunk that is in flight, then tick this state again. States
    are one step apart; `now` is the state's stamp.
    """

    def __init__(self, settings: ExecutorSettings, action: ActionSpec, horizon: int, executed: int) -> None:
        check(settings, action, horizon, executed)
        self.settings, self.expected = settings, Expected(action, horizon, executed)
        self.lead = nanoseconds(settings.action_latency) if settings.poses else 0
        self.latency = Latency(settings.latency_window, settings.latency_quantile, settings.latency_initial)
        self.follower = Follower(settings, action)
        self.schedule, self.asking, self.counts = Schedule(), Asking(), Counts()
        self.running = False
        self.sequence = 0
        self.now = 0
        self.refusal = ""  # why the last refused chunk was refused
        self.reset("no trial has begun")

    @property
    def in_flight(self) -> ChunkRequest | None:
        """The request that waits for its answer; a node in lockstep repeats it, for there time stands still."""
        return self.asking.in_flight

    def start(self, trial: str, seed: int, state: RobotState, now: int) -> None:
        """Begin a trial at its first state."""
        self.now = now
        self.reset("waiting for the first chunk")
        self.asking, self.counts = Asking(trial, seed, state.stamp), Counts()
        self.running = True

    def stop(self, reason: str) -> None:
        """End the trial; every tick from now on holds the robot, for this reason."""
        self.reset(reason)
        self.running = False

    def abort(self, reason: str) -> Command:
        """End the trial with a command that stops the robot until a person re-arms it."""
        command = self._command(Kind.STOP, reason=reason)
        self.stop(reason)
        return command

    def reset(self, reason: str) -> None:
        """Forget every action, asked for or scheduled, and hold the robot until the next chunk. The trial goes on."""
        self.hold = reason  # why the robot is held; "" while it follows a chunk
        self.since = self.now  # since when there is no step left
        self.schedule.clear()
        self.follower.clear()
        self.asking.give_up()
        self.answer: tuple[Chunk, ChunkRequest, int] | None = None  # not yet taken: chunk, its request, its arrival
        self.grid: int | None = None  # where the grid of steps begins
        self.done = self.expected.executed - 1  # receding: the last step that was sent

    def on_state(self, state: RobotState) -> None:
        """The robot's state; that of another trial ends this one (the simulator was reset under it)."""
        asking = self.asking
        if self.running and state.trial not in ("", asking.trial) and state.stamp > asking.start:
            self.stop(f"the robot is in trial '{state.trial}', not in '{asking.trial}'")

    def on_arm(self, index: int, arm: ArmState) -> None:
        """What arm `index` measures: where a reference begins, and what it must not leave."""
        self.follower.on_arm(index, arm)

    def on_chunk(self, chunk: Chunk, now: int) -> None:
        """The policy's answer, at its arrival."""
        now = self.now if self.settings.lockstep else now
        request = self.asking.asked(chunk, now) if self.running else None
        if request is None:
            self.counts.ignored += 1
            return
        self.refusal = self.expected.complaint(chunk)
        if self.asking.checkpoint not in ("", chunk.checkpoint):
            self.refusal = f"chunk {chunk.index} comes from another checkpoint than the trial's first"
        if self.refusal:
            self.counts.refused += 1
            return
        self.counts.answers += 1
        self.asking.answered(chunk)
        self.answer = (chunk, request, now)

    def tick(self, now: int) -> tuple[Command | None, ChunkRequest | None]:
        """The command for `now`, and the request to send, if any."""
        if self.running and now < self.now:
            self.reset("the clock went back")
        self.now = now
        if not self.running:
            return self._command(Kind.HOLD, reason=self.hold), None
        self._take()
        request = self._ask()
        if self.settings.lockstep and self._must_wait():
            return None, request
        self._starve()
        command = self._pose() if self.settings.poses else self._delta()
        self.schedule.trim(now)
        return command, request

    # --- the talk with the policy -------------------------------------------------------------------------------------

    def _floor(self, time: int) -> int:
        """The last time on the grid of steps that is not after `time`."""
        assert self.grid is not None
        return time - (time - self.grid) % self.expected.step

    def _release(self, request: ChunkRequest) -> int:
        """In lockstep: when its answer is used."""
        return request.stamp + nanoseconds(self.settings.lockstep_latency)

    def _take(self) -> None:
        """Schedule the answer that has come; in lockstep not before its time."""
        if self.answer is None or (self.settings.lockstep and self.now < self._release(self.answer[1])):
            return
        (chunk, request, arrival), self.answer = self.answer, None
        arrival = self.now if self.settings.lockstep else arrival
        self.latency.add(max(0, arrival - request.stamp) / SECOND)
        if self.settings.poses:
            self.grid = chunk.stamp if self.grid is None else self.grid
            first = self._floor(chunk.stamp + self.expected.step // 2)  # the nearest on the grid
            self.counts.late += self.schedule.add(chunk, first, arrival + self.lead, self.expected.horizon)
        else:
            self.counts.late += self.expected.executed - 1 - self.done
            self.done = -1
            self.schedule.clear()
            self.schedule.add(chunk, self.now, self.now, self.expected.executed)
        if self.schedule.slots:
            self.hold, self.since = "", self.schedule.slots[-1].until

    def _ask(self) -> ChunkRequest | None:
        """The next request when it is time for it, or the one in flight again when it has waited for too long."""
        if self.in_flight is None:
            stamp = self._wanted() if self.answer is None else None
        elif not self.settings.lockstep and self.now - self.asking.sent_at >= nanoseconds(
            self.settings.request_timeout
        ):
            stamp = self.now if self.grid is None else self._floor(self.now)
        else:
            stamp = None
        if stamp is None:
            return None
        self.counts.requests += 1
        if self.settings.mode != "rtc" or (prefix := self.schedule.rest(stamp)) is None:
            return self.asking.ask(stamp, self.now)
        frozen = math.ceil((self.latency.estimate * SECOND + self.lead) / self.expected.step - 1e-6)
        return self.asking.ask(stamp, self.now, min(frozen, len(prefix)), prefix)

    def _wanted(self) -> int | None:
        """The observation time to ask for now; None: not yet."""
        if self.grid is None:
            return None if self.schedule.at(self.now) else self.now
        stamp, slots = self._floor(self.now), self.schedule.slots
        used = not slots or self.now >= slots[-1].due(self.expected.executed)
        return stamp if stamp > self.asking.last and (used or self.settings.mode == "ensemble") else None

    def _must_wait(self) -> bool:
        """In lockstep: whether a chunk, or an arm's state, has to come before this state can be answered."""
        late = self.in_flight is not None and self.now >= self._release(self.in_flight)
        return late or (self.settings.poses and self.follower.missing(self.now) is not None)

    # --- commands -----------------------------------------------------------------------------------------------------

    def _command(self, kind: Kind, **fields: Any) -> Command:
        self.sequence += 1
        return Command(self.now, self.asking.trial if self.running else "", self.sequence, kind, **fields)

    def _idle(self) -> Command:
        """Nothing new: keep going, or stay held."""
        return self._command(Kind.HOLD, reason=self.hold) if self.hold else self._command(Kind.KEEP)

    def _starve(self) -> None:
        """Out of steps: soon the robot is held, and what it was on its way to is forgotten."""
        if not self.schedule.at(self.now + self.lead):
            self.counts.starved += 1
            if self.now + self.lead - self.since >= nanoseconds(self.settings.starve_after):
                self.hold = "starved"
                self.follower.clear()

    def _delta(self) -> Command:
        """The step that is due, once; those that a late tick has missed are dropped."""
        found = self.schedule.at(self.now)
        if not found or found[-1][1] == self.done:
            return self._idle()
        slot, step = found[-1]
        self.counts.late += step - 1 - self.done
        self.counts.steps += 1
        self.done, chunk = step, slot.chunk
        action = chunk.actions[step].copy()
        return self._command(Kind.DELTA, chunk=chunk.index, step=step, observation=chunk.stamp, action=action)

    def _pose(self) -> Command:
        """The reference trajectory at this tick. Out of steps it settles on its goal before the robot is held."""
        missing = self.follower.missing(self.asking.start)
        if missing is not None:
            return self._command(Kind.HOLD, reason=f"no state of arm {missing} since the trial began")
        ahead = self.now + self.lead
        if self.grid is None or self.hold or not self.follower.follow(self.schedule, self.grid, ahead, self.counts):
            return self._idle()
        chunk, step = self.follower.present
        return self._command(
            Kind.POSE, chunk=chunk.index, step=step, observation=chunk.stamp, targets=self.follower.targets()
        )
