"""The executor's side of the talk with the policy: one request in flight, and which chunk is its answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2ppo_core.contract import ActionSpec

from ..records import SECOND, Chunk, ChunkRequest


@dataclass(frozen=True)
class Expected:
    """What every chunk must look like."""

    action: ActionSpec
    horizon: int  # H
    executed: int  # Ta

    @property
    def step(self) -> int:
        """ns between two actions."""
        return round(SECOND / self.action.control_hz)

    def complaint(self, chunk: Chunk) -> str:
        """What is wrong with `chunk`; "" if nothing is."""
        shape = (self.horizon, self.action.size)
        if chunk.actions.shape != shape:
            return f"chunk {chunk.index} has shape {chunk.actions.shape}, the policy's is {shape}"
        if (chunk.executed, chunk.step) != (self.executed, self.step):
            return (
                f"chunk {chunk.index} executes {chunk.executed} x {chunk.step} ns, not {self.executed} x {self.step} ns"
            )
        if chunk.delta_reference != self.action.delta_reference:
            return f"chunk {chunk.index} has {chunk.delta_reference} deltas, not {self.action.delta_reference} ones"
        if not np.isfinite(chunk.actions).all():
            return f"chunk {chunk.index} holds NaN or infinity"
        return ""


class Asking:
    """Numbers the requests of one trial. At most one is in flight; repeating it gives it a newer observation time."""

    def __init__(self, trial: str = "", seed: int = 0, start: int = 0) -> None:
        self.trial, self.seed, self.start = trial, seed, start
        self.index = 0  # of the next chunk to ask for, or of the one in flight
        self.sent: list[ChunkRequest] = []  # the one in flight with its repeats
        self.sent_at = 0
        self.last = start - 1  # observation time of the last chunk taken
        self.checkpoint = ""  # that the trial's first chunk came from

    @property
    def in_flight(self) -> ChunkRequest | None:
        """The request that waits for its answer."""
        return self.sent[-1] if self.sent else None

    def ask(self, stamp: int, now: int, frozen: int = 0, prefix: np.ndarray | None = None) -> ChunkRequest:
        """A request for the observation of `stamp`: a new one, or the one in flight again."""
        self.sent.append(ChunkRequest(stamp, self.trial, self.seed, self.index, self.start, frozen, prefix))
        self.sent_at = now
        return self.sent[-1]

    def asked(self, chunk: Chunk, now: int) -> ChunkRequest | None:
        """The request that `chunk` answers; None: not asked for, or its observation is too old or of the future."""
        if (chunk.trial, chunk.index) != (self.trial, self.index) or chunk.stamp > now:
            return None
        return next((request for request in reversed(self.sent) if request.stamp <= chunk.stamp), None)

    def answered(self, chunk: Chunk) -> None:
        """`chunk` has been taken; the next request is for the next one."""
        self.index, self.sent, self.last, self.checkpoint = self.index + 1, [], chunk.stamp, chunk.checkpoint

    def give_up(self) -> None:
        """No answer to what is in flight will be taken any more."""
        self.index, self.sent, self.last = self.index + bool(self.sent), [], self.start - 1
