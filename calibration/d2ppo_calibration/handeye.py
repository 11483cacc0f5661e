"""Hand-eye calibration: where the camera is on the flange (eye in hand), or before the robot's base (eye to hand).

Written once for both. Let `arm` be base_flange of each view when the eye is in the hand, and flange_base when it
watches the hand. Then, with the camera at `arm_camera` (in flange or base) and the board at `root_board` (in base or
flange),

    camera_board = inverse(arm_camera) @ inverse(arm) @ root_board        in every view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy.optimize import least_squares
from scipy.sparse import lil_matrix
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError

from .camera import Intrinsics, project
from .detect import Seen, board_pose
from .intrinsics import HELD_OUT, good_views
from .poses import apart, from_vector, inverse, mean, pose, spread, vector

VIEWS = 5  # fewest that a camera's place is computed from
TURN = 8.0  # degrees about the second axis: less is no calibration but a guess
PIXEL = 0.1  # how exactly corners are found, as a standard deviation
ARM = (np.radians(0.03), 0.0003)  # how exactly the arm's poses are known: rad, m, in the flange's frame
SOLVERS = {name: getattr(cv2, f"CALIB_HAND_EYE_{name.upper()}") for name in
           ("tsai", "park", "horaud", "andreff", "daniilidis")}  # fmt: skip
WORLD_SOLVERS = {"shah": cv2.CALIB_ROBOT_WORLD_HAND_EYE_SHAH, "li": cv2.CALIB_ROBOT_WORLD_HAND_EYE_LI}


@dataclass(frozen=True)
class Problem:
    """What is known: the camera, what it sees, and the flange in each of n views."""

    sees: Intrinsics
    seen: list[Seen]
    base_flange: np.ndarray  # (n, 4, 4)
    in_hand: bool

    @cached_property
    def arm(self) -> np.ndarray:
        """(n, 4, 4), see the module."""
        return self.base_flange if self.in_hand else inverse(self.base_flange)

    @cached_property
    def camera_board(self) -> np.ndarray:
        """(n, 4, 4): from each picture alone."""
        return np.array([board_pose(self.sees, one) for one in self.seen])

    def only(self, rows: Sequence[int] | np.ndarray) -> Problem:
        """The problem with some of its views."""
        return Problem(self.sees, [self.seen[i] for i in rows], self.base_flange[list(rows)], self.in_hand)


@dataclass(frozen=True)
class Solution:
    """Where things are."""

    camera: np.ndarray  # (4, 4): arm_camera, in the flange (in hand) or base (to hand)
    board: np.ndarray  # (4, 4): root_board, in the base (in hand) or flange (to hand)


def solve_with(problem: Problem, solver: str) -> Solution:
    """One of OpenCV's closed forms; the board by averaging over the views."""
    arm, boards = problem.arm, problem.camera_board
    if solver in SOLVERS:
        turn, place = cv2.calibrateHandEye(
            arm[:, :3, :3], arm[:, :3, 3], boards[:, :3, :3], boards[:, :3, 3], method=SOLVERS[solver]
        )
        camera = pose(place, turn)
    else:
        back = inverse(arm)
        _, _, turn, place = cv2.calibrateRobotWorldHandEye(
            boards[:, :3, :3], boards[:, :3, 3], back[:, :3, :3], back[:, :3, 3], method=WORLD_SOLVERS[solver]
        )
        camera = inverse(pose(place, turn))
    return Solution(camera, mean(arm @ camera @ boards))


def solve_all(problem: Problem) -> dict[str, Solution]:
    """Every closed form that gives a pose, by name."""
    found = {}
    for solver in (*SOLVERS, *WORLD_SOLVERS):
        try:
            solution = solve_with(problem, solver)
        except (cv2.error, ValueError, np.linalg.LinAlgError):  # it found no rotation in these motions
            continue
        if np.isfinite(solution.camera).all() and abs(np.linalg.det(solution.camera[:3, :3]) - 1) < 1e-3:
            found[solver] = solution
    return found


def refine(problem: Problem, start: Solution) -> Solution:
    """Camera, board and a small correction of the arm in each view, together.

    Minimises the squared distances of the corners from where they must appear, in units of PIXEL, plus the squared
    corrections, in units of ARM. Without corrections an error of the robot's angles would have to be explained by the
    camera's place, and far views, which magnify it, would count most.
    """
    count = len(problem.seen)
    back, units = inverse(problem.arm), np.repeat(ARM, 3)

    def shifted(arm_root: np.ndarray, correction: np.ndarray) -> np.ndarray:
        return correction @ arm_root if problem.in_hand else arm_root @ correction

    def residuals(unknown: np.ndarray) -> np.ndarray:
        eye, board = inverse(from_vector(unknown[:6])), from_vector(unknown[6:12])
        corrections = unknown[12:].reshape(count, 6) * units
        away = [
            project(problem.sees, eye @ shifted(one, from_vector(correction)) @ board, seen.points) - seen.pixels
            for correction, one, seen in zip(corrections, back, problem.seen, strict=True)
        ]
        return np.concatenate([np.concatenate(away).ravel() / PIXEL, unknown[12:]])

    first = np.concatenate([vector(start.camera), vector(start.board), np.zeros(6 * count)])
    best = least_squares(
        residuals, first, loss="soft_l1", f_scale=3.0, x_scale="jac", jac_sparsity=_sparsity(problem), max_nfev=50
    ).x
    return Solution(from_vector(best[:6]), from_vector(best[6:12]))


def _sparsity(problem: Problem) -> lil_matrix:
    """Which residuals of `refine` depend on which unknowns."""
    count, sizes = len(problem.seen), [2 * len(seen.ids) for seen in problem.seen]
    pattern, row = lil_matrix((sum(sizes) + 6 * count, 12 + 6 * count), dtype=int), 0
    for view, size in enumerate(sizes):
        pattern[row : row + size, :12] = 1
        pattern[row : row + size, 12 + 6 * view : 18 + 6 * view] = 1
        row += size
    for number in range(6 * count):
        pattern[row + number, 12 + number] = 1
    return pattern


def view_errors(problem: Problem, solution: Solution) -> np.ndarray:
    """(n,) pixels: root mean square distance of each view's corners from where the solution puts them."""
    expected = inverse(solution.camera) @ inverse(problem.arm) @ solution.board
    away = [project(problem.sees, one, seen.points) - seen.pixels
            for one, seen in zip(expected, problem.seen, strict=True)]  # fmt: skip
    return np.array([np.sqrt((one**2).sum(1).mean()) for one in away])


def board_spread(problem: Problem, solution: Solution) -> tuple[float, float]:
    """Where each view, with this camera, puts the board that did not move: root mean square spread, (m, degrees)."""
    return spread(problem.arm @ solution.camera @ problem.camera_board)


def diversity(arm: np.ndarray) -> tuple[float, float]:
    """How far the hand was turned between views, degrees: the largest turn, and the largest one across its axis.

    Without turns about two axes the place of the camera along the one axis cannot be known.
    """
    turns = Rotation.from_matrix(arm[:, :3, :3])
    pairs = np.concatenate([(turns[i].inv() * turns[i + 1 :]).as_rotvec() for i in range(len(arm) - 1)])
    sizes = np.linalg.norm(pairs, axis=1)
    largest = float(sizes.max())
    if largest < 1e-9:
        return 0.0, 0.0
    axis = pairs[sizes.argmax()] / largest
    across = pairs - np.outer(pairs @ axis, axis)
    return float(np.degrees(largest)), float(np.degrees(np.linalg.norm(across, axis=1).max()))


def require_motion(arm: np.ndarray) -> tuple[float, float]:
    """`diversity`, or a sentence that says what the motions lack."""
    if len(arm) < VIEWS:
        raise UserError(
            f"the board is seen well in only {len(arm)} views; hand-eye calibration needs {VIEWS}, better 15"
        )
    first, second = diversity(arm)
    if first < TURN:
        raise UserError(
            f"the hand is turned by at most {first:.1f} degrees between views; moves along straight lines say nothing "
            "of where the camera is: turn the hand by 30 degrees or more about two axes"
        )
    if second < TURN:
        raise UserError(
            f"the hand is turned by {first:.0f} degrees about one axis, but by only {second:.1f} about any other; tilt "
            "it about a second axis, too, by 30 degrees or more"
        )
    return first, second


def solve(problem: Problem) -> tuple[Solution, np.ndarray, dict[str, Solution]]:
    """The refined solution, (n,) bool which views it rests on, and what each closed form gave on these.

    Views that do not fit (the board was pushed, the robot still moved) are left out one by one.
    """
    kept = np.arange(len(problem.seen))
    while True:
        part = problem.only(kept)
        require_motion(part.arm)
        closed = solve_all(part)
        if not closed:
            raise UserError("no solver found a pose for the camera; record views that turn the hand about two axes")
        start = min(closed.values(), key=lambda one: np.median(view_errors(part, one)))
        solution = refine(part, start)
        errors = view_errors(part, solution)
        lost = len(problem.seen) - len(kept)
        good = good_views(errors, least=VIEWS, floor=1.0)
        if good.all() or lost >= len(problem.seen) // 4:
            return solution, np.isin(np.arange(len(problem.seen)), kept), closed
        kept = np.delete(kept, errors.argmax())


def hold_out(problem: Problem, seed: int = 0) -> tuple[float, float, float]:
    """Of views that the solution was not computed from: how far they put the board from it (root mean square m,
    degrees), and the error in pixels. NaN where there are too few.
    """
    count = len(problem.seen)
    order, aside = np.random.default_rng(seed).permutation(count), round(HELD_OUT * count)
    if count - aside < VIEWS or not aside or min(diversity(problem.arm[order[aside:]])) < TURN:
        return (float("nan"),) * 3
    train, test = problem.only(order[aside:]), problem.only(order[:aside])
    solution, _, _ = solve(train)
    places = test.arm @ solution.camera @ test.camera_board
    away = np.array([apart(place, solution.board) for place in places])  # (n, 2)
    metres, degrees = np.sqrt((away**2).mean(0)).tolist()
    return metres, degrees, float(np.sqrt((view_errors(test, solution) ** 2).mean()))


def disagreement(closed: dict[str, Solution], solution: Solution) -> dict[str, tuple[float, float]]:
    """How far each closed form is from the solution: (m, degrees)."""
    return {name: apart(one.camera, solution.camera) for name, one in closed.items()}
