"""Every transform between a Franka arm and the policy's world, in one file.

Three frames of one wrist, all with z along the last joint's axis (all numbers are of the models themselves):

| frame | whose | from the last link |
|---|---|---|
| EE | `O_T_EE` of the robot with Franka's hand set in Desk | 0.2104 m (flange 0.107, hand 0.1034), -45 deg about z |
| grip site | robosuite's `eef_pos`, and what a delta moves | 0.2035 m, -135.03 deg about z |
| right_hand | robosuite's `eef_quat` | 0.1065 m, -45.03 deg about z |

The world is the simulator's; each arm's base stands in it at a position (m) and is turned about the vertical (rad).
Quaternions are xyzw.

**Sign rule.** q and -q are one rotation, and a policy tells them apart. The simulator's quaternion is the product of
the links' fixed rotations and the joints' turns, never flipped: here that product is made of the measured joint angles
and gives the sign; the rotation itself is the robot's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from d2ppo_core.rotations import rotation_of

FLANGE = 0.107  # m, last link to flange
HAND_TCP = 0.1034  # m, flange to EE: Franka's hand
HAND_TURN = -np.pi / 4  # rad, flange to EE about z
GRIP_SITE = 0.2035  # m, last link to robosuite's grip site: 0.1065 to right_hand and 0.097
_HALF = np.sqrt(0.5)
# robosuite's Panda: each link's fixed rotation, as w x y z, then right_hand's.
_LINKS = ((1.0, 0.0, 0.0, 0.0), (_HALF, -_HALF, 0.0, 0.0), (_HALF, _HALF, 0.0, 0.0), (_HALF, _HALF, 0.0, 0.0),
          (_HALF, -_HALF, 0.0, 0.0), (_HALF, _HALF, 0.0, 0.0), (_HALF, _HALF, 0.0, 0.0))  # fmt: skip
_HAND = np.array([0.923785, 0.0, 0.0, -0.382911]) / np.linalg.norm([0.923785, 0.382911])
_GRIP = np.array([_HALF, 0.0, 0.0, -_HALF])  # right_hand to the grip site's axes

_HAND_ANGLE = 2 * np.arctan2(_HAND[3], _HAND[0])  # -45.03 deg
_EE_TO_HAND = Rotation.from_euler("z", _HAND_ANGLE - HAND_TURN).as_matrix()
_EE_TO_GRIP = Rotation.from_euler("z", _HAND_ANGLE - np.pi / 2 - HAND_TURN).as_matrix()


@dataclass(frozen=True)
class ArmFrames:
    """One arm's place in the world, and its tool.

    Args:
        base: (3,) m of the arm's base in the world.
        yaw: rad, the base turned about the vertical.
        tool: m along the tool's axis from the robot's EE to the policy's point; negative towards the flange.
    """

    base: np.ndarray
    yaw: float
    tool: float = GRIP_SITE - FLANGE - HAND_TCP

    @cached_property
    def turn(self) -> np.ndarray:
        """(3, 3) of the base in the world."""
        return Rotation.from_euler("z", self.yaw).as_matrix()

    def site(self, ee: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Robot's O_T_EE (4, 4) in its base -> grip site in the world: position (3,) m, rotation (3, 3)."""
        rotation = self.turn @ ee[:3, :3]
        position = self.base + self.turn @ (ee[:3, 3] + self.tool * ee[:3, 2])
        return position, rotation @ _EE_TO_GRIP

    def ee(self, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """The inverse of `site`: where O_T_EE (4, 4) must be in the robot's base."""
        pose = np.eye(4)
        pose[:3, :3] = self.turn.T @ rotation @ _EE_TO_GRIP.T
        pose[:3, 3] = self.turn.T @ (position - self.base) - self.tool * pose[:3, 2]
        return pose

    def ee_twist(self, twist: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """The site's twist (6,) in the world, its rotation being (3, 3) -> the EE's twist in the robot's base."""
        arm = -self.tool * rotation[:, 2]  # site to EE, world
        linear = twist[:3] + np.cross(twist[3:], arm)
        return np.concatenate([self.turn.T @ linear, self.turn.T @ twist[3:]])

    def site_wrench(self, wrench: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        """External wrench (6,) at the robot's EE in its base -> at the site in the world, its rotation being (3, 3)."""
        force, torque = self.turn @ wrench[:3], self.turn @ wrench[3:]
        return np.concatenate([force, torque + np.cross(-self.tool * rotation[:, 2], force)])

    def hand_quaternion(self, ee: np.ndarray, q: np.ndarray) -> np.ndarray:
        """right_hand's quaternion (4,) xyzw in the world, with the simulator's sign; ee (4, 4), q (7,) rad."""
        found = rotation_of(self.turn @ ee[:3, :3] @ _EE_TO_HAND).as_quat()
        return found if found @ self.chain(q) >= 0 else -found

    def chain(self, q: np.ndarray) -> np.ndarray:
        """The product of the links' rotations (4,) xyzw at joint angles q (7,) rad, base first, never flipped."""
        total = np.array([np.cos(self.yaw / 2), 0.0, 0.0, np.sin(self.yaw / 2)])
        for link, angle in zip(_LINKS, q, strict=True):
            total = _product(total, np.array(link))
            total = _product(total, np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)]))
        total = _product(total, _HAND)
        return np.roll(total, -1)  # w x y z -> x y z w


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product of two quaternions w x y z."""
    w, x, y, z = a
    return np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]) @ b


def finger_positions(width: float) -> np.ndarray:
    """Opening of the hand in m -> robosuite's two finger joints (2,) m: half of it each, the second negative."""
    return np.array([width / 2, -width / 2])
