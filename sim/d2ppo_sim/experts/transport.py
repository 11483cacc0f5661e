"""The expert of Transport: two scripts, one for each arm, which meet at the hand-over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.spatial.transform import Rotation

from ..episode import Observation
from .manner import BETTER, Manner
from .motion import CLOSED, OPEN, Arm, Goal, Point, Script, raised, wrap, yaw_of

PLACES = {"left": (-0.09, -0.02), "right": (0.02, 0.09)}  # m, x of the hand-over, by name of the mode


class TransportExpert:
    """The giver takes the lid off and offers the hammer; the taker throws away the cube and puts the hammer in the bin.

    Modes: which way the hammer's head pointed at the start (towards the giver, "near", or away from it, and then the
    giver turns the hammer round), and where the hammer is handed over.
    """

    BASES = ((0.0, -0.81), (0.0, 0.81))  # m
    WALL_TOP = 0.951  # m, of the bins
    CLEAR = 0.05  # m above the walls at which empty hands travel: the fingertips are 1 cm below the grip site
    HEAD, TAIL = 0.133, -0.10  # m along the hammer's axis from its handle's middle to its ends
    GIVER_GRIP = 0.055  # m along the axis: about the centre of mass, elsewhere it pivots in the fingers
    TAKER_GRIP = -0.080  # m along the axis: far from the giver's hand
    LOST = 0.04  # m between grip site and grasped point beyond which a grasp is lost
    HELD = 0.02  # m between the fingers around the handle, at least: it is 3 cm thick
    LID_SPOT = ((-0.22, -0.17), (-0.47, -0.43))  # m, x and y of where the lid is put down
    LID_DOWN = 0.845  # m, height of the lid's handle when it is let go: 2 cm above where it comes to lie
    NEAR_FLOOR = 0.02  # m of the hammer's lowest end above the middle of the target bin's floor when it is let go
    OUT = (0.1, -0.35)  # m, x and y on the giver's ways: nearer its base the folded arm is pushed about by its limits
    MEETING = (-0.01, 0.01)  # m, y of the middle between the hands at the hand-over: both arms are nearly stretched
    LEVEL = (0.98, 1.05)  # m, height of the hand-over: about where the arms reach farthest
    ASIDE = 0.2  # m, y to which the taker draws back before it lifts the hammer: a stretched arm cannot rise
    WAITING = (0.0, 0.22)  # m, x and y of the taker's hand while it waits

    def __init__(self, rng: np.random.Generator, first: Observation, manner: Manner = BETTER) -> None:
        self.arms = [Arm(rng, first, manner, base, robot=i) for i, base in enumerate(self.BASES)]
        self._look(first)
        near = self._along(self.HEAD)[1] < self.payload[1]
        place = str(rng.choice(list(PLACES)))
        self.mode = f"head-{'near' if near else 'far'}-{place}"
        self._place = np.array([rng.uniform(*PLACES[place]), rng.uniform(*self.MEETING), rng.uniform(*self.LEVEL)])
        self._lid_spot = np.array([rng.uniform(*limits) for limits in self.LID_SPOT])
        self._heights = rng.uniform(0.0, 0.06, 3)  # m, by which lid, hammer and cube are lifted higher than they must
        self._hover = rng.uniform(0.06, 0.10)  # m above an object before descending
        self._drop = rng.uniform(-0.05, 0.05, 2)  # m, from the middle of the trash bin
        self._offered = self._taken = self._released = False
        self._carried = self._holding(self.arms[1], partial(self._along, self.TAKER_GRIP))
        self._moves = [self._giver(), self._taker()]

    def act(self, seen: Observation) -> np.ndarray:
        """(14,) action: giver 7, taker 7."""
        for arm in self.arms:
            arm.see(seen)
        self._look(seen)
        return np.concatenate([arm.command(next(moves)) for arm, moves in zip(self.arms, self._moves, strict=True)])

    def _look(self, seen: Observation) -> None:
        parts = np.split(seen["object"], [3, 7, 10, 14, 17, 21, 24, 27])
        self.payload, self.cube, self.lid = parts[0], parts[2], parts[4]
        self.payload_rotation, self.cube_rotation, self.lid_rotation = (Rotation.from_quat(parts[i]) for i in (1, 3, 5))
        self.target_bin, self.trash_bin = parts[6], parts[7]

    def _along(self, distance: float) -> np.ndarray:
        """(3,) m: a point of the hammer's axis."""
        return self.payload + self.payload_rotation.apply([0.0, 0.0, distance])

    # The giver.

    def _giver(self) -> Script:
        arm = self.arms[0]
        yield from self._remove_lid(arm)
        while not (yield from self._offer(arm)):
            yield from arm.open()
            yield from self._rise(arm, 0.15)
        yield from arm.open()
        yield from self._rise(arm, 0.12, speed=0.4)
        self._released = True
        back = np.array([arm.hand[0], self.OUT[1], arm.hand[2]])
        while True:
            yield from arm.move(lambda: back, arm.yaw, OPEN)
            yield from arm.rest(5)

    def _remove_lid(self, arm: Arm) -> Script:
        """Put the lid onto the free half of the table."""
        while np.linalg.norm(self.lid[:2] - self._lid_spot) > 0.1:
            yaw = self._nearest_yaw(arm, self.lid, yaw_of(self.lid_rotation, 0), np.pi)
            held = self._holding(arm, lambda: self.lid)
            yield from self._grasp(arm, lambda: self.lid, yaw)
            up = np.array([*arm.hand[:2], self.WALL_TOP + 0.07 + self._heights[0]])
            over, down = np.array([*self._lid_spot, up[2]]), np.array([*self._lid_spot, self.LID_DOWN])
            for point, near in ((up, 0.03), (over, 0.04), (down, 0.02)):
                if not (yield from arm.move(lambda p=point: p, yaw, CLOSED, near, holds=held, patience=70)):
                    break
            yield from arm.open()
            yield from self._rise(arm, 0.1)

    def _offer(self, arm: Arm) -> Script:
        """Bring the hammer to the place of the hand-over, tail first, and hold it there. False if it was lost."""
        grip = partial(self._along, self.GIVER_GRIP)
        held = self._holding(arm, grip)
        grasp_turn, give_turn = self._plan(arm)
        yaw = arm.yaw_at(grip(), grasp_turn)
        out = np.array([*self.OUT, self.WALL_TOP + self.CLEAR])
        yield from arm.move(lambda: out, yaw, OPEN, 0.05, turned=0.5)
        yield from self._grasp(arm, lambda: raised(grip(), -0.002), yaw, centred=0.015)
        tailwards = self.payload_rotation.apply([0.0, 0.0, -0.03])  # the hand drifts to the base: keep off the wall
        up = np.array([*(arm.hand + tailwards)[:2], self.WALL_TOP + 0.06 + self._heights[1]])
        if not (yield from arm.move(lambda: up, arm.yaw, CLOSED, 0.03, holds=held)):
            return False
        giving = arm.yaw_at(self._place, give_turn)
        turning = np.array([*self.OUT, up[2]])
        if not (yield from arm.move(lambda: turning, giving, CLOSED, 0.05, turned=0.5, holds=held)):
            return False
        if not (yield from arm.move(lambda: self._giving_hand(arm), giving, CLOSED, 0.02, turned=0.1, holds=held)):
            return False
        self._offered = True
        here = Goal(self._giving_hand(arm), giving, CLOSED)
        while held() and not self._taken:
            yield here
        self._offered = False
        return self._taken

    def _giving_hand(self, arm: Arm) -> np.ndarray:
        """(3,) m: where the giver's hand must be, for the way to the hand-over to be the same for both arms."""
        apart = self._along(self.TAKER_GRIP)[1] - arm.hand[1]
        return self._place - [0.0, apart / 2, 0.0]

    def _plan(self, arm: Arm) -> tuple[float, float]:
        """The wrist's turns at the grasp and at the hand-over, where the hammer's tail points to the taker."""
        grip, axis = self._along(self.GIVER_GRIP), yaw_of(self.payload_rotation, 2)
        plans = []
        for grasp in arm.turns_at(grip, axis + np.pi / 2, np.pi):
            yaw = arm.yaw_at(grip, grasp) - np.pi / 2 - axis  # the head points to the giver
            plans += [(grasp, give) for give in arm.turns_at(self._place, yaw, 2 * np.pi)]
        # None fits a hammer that was dropped and turned too far: then the hand-over is tried as it can be.
        return min(plans, key=lambda plan: abs(plan[0]) + abs(plan[1] - plan[0]), default=(0.0, 0.0))

    # The taker.

    def _taker(self) -> Script:
        arm = self.arms[1]
        yield from self._remove_cube(arm)
        waiting = np.array([*self.WAITING, self._place[2] + 0.12])
        yaw = arm.yaw_at(waiting, 0.0)
        while True:
            while not self._offered:
                yield from arm.move(lambda: waiting, yaw, OPEN, patience=5)
                yield from arm.rest(1)
            if (yield from self._take(arm)):
                yield from self._put(arm)
            yield from arm.open()
            yield from self._rise(arm, 0.12)

    def _remove_cube(self, arm: Arm) -> Script:
        """Drop the cube into the trash bin."""
        spot = np.array([*(self.trash_bin[:2] + self._drop), self.WALL_TOP + 0.06 + self._heights[2]])
        while np.abs(self.cube[:2] - self.trash_bin[:2]).max() > 0.14:
            yaw = self._nearest_yaw(arm, self.cube, yaw_of(self.cube_rotation, 1), np.pi / 2)
            held = self._holding(arm, lambda: self.cube)
            yield from self._grasp(arm, lambda: self.cube, yaw)
            up = np.array([*arm.hand[:2], spot[2]])
            for point, near in ((up, 0.03), (spot, 0.03)):
                if not (yield from arm.move(lambda p=point: p, yaw, CLOSED, near, holds=held)):
                    break
            yield from arm.open()
            yield from self._rise(arm, 0.08)

    def _take(self, arm: Arm) -> Script:
        """Grasp the hammer's tail, and wait for the giver to let go. False if it did not get hold of it."""
        tail = partial(self._along, self.TAKER_GRIP)
        yaw = self._nearest_yaw(arm, tail(), yaw_of(self.payload_rotation, 2) + np.pi / 2, np.pi)
        yield from self._grasp(arm, tail, yaw)
        here = Goal(arm.hand.copy(), arm.yaw, CLOSED)
        if arm.width < self.HELD or not self._offered or not self._carried():
            return False
        self._taken = True
        while not self._released:
            yield here
        back = np.array([0.8 * arm.hand[0], self.ASIDE, arm.hand[2]])
        yield from arm.move(lambda: back, arm.yaw, CLOSED, 0.04, holds=self._carried)
        return True

    def _put(self, arm: Arm) -> Script:
        """Carry the hammer over the target bin, and lower it until it is all but on the floor."""
        turn = arm.yaw - arm.yaw_at(arm.hand, 0.0)
        up = raised(arm.hand, max(0.0, self.WALL_TOP + 0.05 - self._lowest()))
        yield from arm.move(lambda: up, arm.yaw, CLOSED, 0.03, holds=self._carried)
        for height, near in ((self.WALL_TOP + 0.05, 0.03), (self.target_bin[2] + self.NEAR_FLOOR, 0.02)):
            yield from arm.move(lambda z=height: self._over_bin(arm, z), lambda: self._bin_yaw(arm, turn), CLOSED, near,
                                turned=0.4, holds=self._carried, patience=90)
            if not self._carried():
                return

    def _lowest(self) -> float:
        return min(self._along(self.HEAD)[2], self._along(self.TAIL)[2])

    def _over_bin(self, arm: Arm, height: float) -> np.ndarray:
        """(3,) m: where the hand must be for the hammer to be over the bin's middle, its lowest end at `height`."""
        middle = self._along((self.HEAD + self.TAIL) / 2)
        return arm.hand + np.array([*(self.target_bin[:2] - middle[:2]), height - self._lowest()])

    def _bin_yaw(self, arm: Arm, turn: float) -> float:
        """The yaw that lays the hammer along the bin; a hanging hammer fits anyhow."""
        if abs(self.payload_rotation.as_matrix()[2, 2]) > 0.8:
            return arm.yaw_at(arm.hand, turn)
        return arm.yaw + wrap(-np.pi / 2 - yaw_of(self.payload_rotation, 2))

    # Both.

    def _grasp(self, arm: Arm, target: Point, yaw: float, centred: float = 0.010) -> Script:
        """Over the target, higher than the walls of the bins, down, and close."""
        hover = max(self._hover, self.WALL_TOP + self.CLEAR - target()[2])
        if arm.hand[2] < self.WALL_TOP + self.CLEAR:
            yield from self._rise(arm, self.WALL_TOP + self.CLEAR - arm.hand[2])
        yield from arm.move(lambda: raised(target(), hover), yaw, OPEN, 0.03)
        yield from arm.descend(target, yaw, hover, centred=centred, patience=60)
        yield from arm.close()

    def _holding(self, arm: Arm, point: Point) -> Callable[[], bool]:
        """Whether a point of an object is (still) between the arm's fingers."""
        return lambda: float(np.linalg.norm(arm.hand - point())) < self.LOST

    def _rise(self, arm: Arm, by: float, speed: float = 1.0) -> Script:
        top = raised(arm.hand, by)
        yield from arm.move(lambda: top, arm.yaw, OPEN, 0.03, speed=speed)

    def _nearest_yaw(self, arm: Arm, point: np.ndarray, yaw: float, period: float) -> float:
        """Of the yaws that fit the object, the one that turns the wrist least from the start pose."""
        return arm.yaw_at(point, min(arm.turns_at(point, yaw, period), key=abs))
