"""Scripted experts. They see what a policy sees, and draw one of several ways of doing the task for each episode.

Each expert is built for one episode from its own generator and the first observation, names its `mode`, and maps an
observation to a clean action. The noise is added outside (`ActionNoise`): what is recorded is what was executed.
What is fixed in a scene (where bins and pegs stand) is a named constant, held to robosuite by a test.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..episode import Observation
from .can import CanExpert
from .lift import LiftExpert
from .manner import BETTER, QUALITIES, ActionNoise, Manner, manner_of
from .reach import ReachExpert
from .square import SquareExpert
from .transport import TransportExpert

__all__ = [
    "BETTER", "EXPERTS", "QUALITIES", "ActionNoise", "CanExpert", "Expert", "LiftExpert", "Manner", "ReachExpert",
    "SquareExpert", "TransportExpert", "manner_of",
]


class Expert(Protocol):
    """One episode's way of doing the task."""

    mode: str

    def act(self, seen: Observation) -> np.ndarray: ...


class ExpertFactory(Protocol):
    """Builds the expert of one episode."""

    def __call__(self, rng: np.random.Generator, first: Observation, manner: Manner = ...) -> Expert: ...


EXPERTS: dict[tuple[str, str], ExpertFactory] = {
    ("robosuite", "Lift"): LiftExpert,
    ("robosuite", "PickPlaceCan"): CanExpert,
    ("robosuite", "NutAssemblySquare"): SquareExpert,
    ("robosuite", "TwoArmTransport"): TransportExpert,
    ("toy", "Reach"): ReachExpert,
}
"""By (simulator, environment)."""
