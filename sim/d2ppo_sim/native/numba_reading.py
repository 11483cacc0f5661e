"""Observations and success by numba: reading.hpp, function by function."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .layout import READS, SUCCESSES
from .numba_control import rotation_of
from .numba_memory import contacts, doubles, octets, ssyevd, task_of

BODY_POSITION, BODY_QUATERNION = READS["body_position"], READS["body_quaternion"]
BODY_QUATERNION_FROM_MATRIX = READS["body_quaternion_from_matrix"]
GEOM_POSITION, GEOM_QUATERNION_FROM_MATRIX = READS["geom_position"], READS["geom_quaternion_from_matrix"]
GRIP_MINUS_BODY, BODY_MINUS_GRIP = READS["grip_minus_body"], READS["body_minus_grip"]
GEOM_MINUS_GRIP, BODY_IN_HAND, TOUCHING = READS["geom_minus_grip"], READS["body_in_hand"], READS["touching"]
ABOVE, ALL_TOUCHING, IN_BOX_RELEASED = (SUCCESSES[n] for n in ("above", "all_touching", "in_box_released"))


@njit
def quaternion_of(rotation, out):
    """Quaternion xyzw of a rotation matrix (9,): the top eigenvector of a float32 matrix, w >= 0, as in robosuite."""
    m = rotation.astype(np.float32)
    # All that LAPACK works on is one buffer that is read afterwards: numba frees what nobody needs any more.
    buffer = np.zeros(16 + 4 + 128 + 6 + 64, np.float32)  # matrix, values, work, arguments, integer work
    k, arguments = buffer[:16], buffer[148:154].view(np.int32)
    # Lower triangle, column-major.
    k[0] = m[0] - m[4] - m[8]
    k[1] = m[1] + m[3]
    k[2] = m[2] + m[6]
    k[3] = m[7] - m[5]
    k[5] = m[4] - m[0] - m[8]
    k[6] = m[5] + m[7]
    k[7] = m[2] - m[6]
    k[10] = m[8] - m[0] - m[4]
    k[11] = m[3] - m[1]
    k[15] = m[0] + m[4] + m[8]
    for i in range(16):
        k[i] = np.float64(k[i]) / 3.0
    arguments[:] = np.array((ord("V"), ord("L"), 4, 128, 64, 0))  # vectors, lower, n, two sizes of work, outcome
    matrix, given = buffer.ctypes.data, arguments.ctypes.data
    values, work, whole, n = matrix + 4 * 16, matrix + 4 * 20, matrix + 4 * 154, given + 8
    ssyevd(given, given + 4, n, matrix, n, values, work, given + 12, whole, given + 16, given + 20)
    sign = np.float32(-1.0) if k[15] < 0.0 else np.float32(1.0)  # eigenvalues ascend: the last vector is the top one
    for i in range(4):
        out[i] = sign * k[12 + i]


@njit
def to_xyzw(wxyz, out):
    for i in range(4):
        out[i] = wxyz[(i + 1) % 4]


@njit
def pose_in_hand(arm, d, body, out):
    """Pose (7,) of a body in the hand's frame: positions and rotations pass through float32, as in robosuite."""
    hand, thing, relative = np.empty(9), np.empty(9), np.empty(9)
    rotation_of(doubles(d.xquat, 4 * arm.hand, 4), hand)
    rotation_of(doubles(d.xquat, 4 * body, 4), thing)
    for i in range(9):
        hand[i], thing[i] = np.float32(hand[i]), np.float32(thing[i])
    grip, at = doubles(d.site_xpos, 3 * arm.site, 3), doubles(d.xpos, 3 * body, 3)
    for i in range(3):
        inverse = moved = 0.0
        for j in range(3):
            inverse -= hand[3 * j + i] * np.float64(np.float32(grip[j]))
            moved += hand[3 * j + i] * np.float64(np.float32(at[j]))
        out[i] = moved + inverse
    for i in range(3):
        for j in range(3):
            relative[3 * i + j] = hand[i] * thing[j] + hand[3 + i] * thing[3 + j] + hand[6 + i] * thing[6 + j]
    quaternion_of(relative, out[3:])


@njit
def touching(batch, m, d, one, other):
    """Whether a geom of one group is in contact with one of the other."""
    groups = octets(batch.geom_group, m.ngeom)
    for contact in contacts(d):
        first, second = groups[max(contact.geom1, 0)], groups[max(contact.geom2, 0)]
        if (first & one and second & other) or (first & other and second & one):
            return True
    return False


@njit
def read_one(batch, m, d, read, out):
    """Write one piece of the "object" observation; returns how many numbers it has."""
    arm = task_of(batch).arm[read.arm]
    kind, size = read.kind, 3
    grip = doubles(d.site_xpos, 3 * arm.site, 3)
    if kind == BODY_POSITION:
        out[:3] = doubles(d.xpos, 3 * read.id, 3)
    elif kind == GEOM_POSITION:
        out[:3] = doubles(d.geom_xpos, 3 * read.id, 3)
    elif kind == GRIP_MINUS_BODY:
        out[:3] = grip - doubles(d.xpos, 3 * read.id, 3)
    elif kind == BODY_MINUS_GRIP:
        out[:3] = doubles(d.xpos, 3 * read.id, 3) - grip
    elif kind == GEOM_MINUS_GRIP:
        out[:3] = doubles(d.geom_xpos, 3 * read.id, 3) - grip
    elif kind == BODY_QUATERNION:
        to_xyzw(doubles(d.xquat, 4 * read.id, 4), out)
        size = 4
    elif kind == BODY_QUATERNION_FROM_MATRIX:
        quaternion_of(doubles(d.xmat, 9 * read.id, 9), out)
        size = 4
    elif kind == GEOM_QUATERNION_FROM_MATRIX:
        quaternion_of(doubles(d.geom_xmat, 9 * read.id, 9), out)
        size = 4
    elif kind == BODY_IN_HAND:
        pose_in_hand(arm, d, read.id, out)
        size = 7
    elif kind == TOUCHING:
        out[0] = touching(batch, m, d, read.id, read.other)
        size = 1
    return size


@njit
def observe(batch, m, d, out):
    """The whole observation: of each arm grip position, hand quaternion, fingers; then "object"."""
    task, qpos, at = task_of(batch), doubles(d.qpos, 0, m.nq), 0
    for a in range(task.arms):
        arm = task.arm[a]
        out[at : at + 3] = doubles(d.site_xpos, 3 * arm.site, 3)
        to_xyzw(doubles(d.xquat, 4 * arm.hand, 4), out[at + 3 :])
        for f in range(2):
            out[at + 7 + f] = qpos[arm.finger_qpos[f]]
        at += 9
    for r in range(task.reads):
        at += read_one(batch, m, d, task.read[r], out[at:])


@njit
def all_touching(batch, m, d):
    """Whether every `TOUCHING` entry of the observation is true."""
    task = task_of(batch)
    for r in range(task.reads):
        read = task.read[r]
        if read.kind == TOUCHING and not touching(batch, m, d, read.id, read.other):
            return False
    return True


@njit
def in_place(task, d, at):
    """Whether an object is in the task's box, or on the peg."""
    limit = task.limit
    if task.success == IN_BOX_RELEASED:
        return ((limit[:3] < at) & (at < limit[3:])).all()
    peg = doubles(d.xpos, 3 * task.success_other, 3)
    return abs(at[0] - peg[0]) < limit[0] and abs(at[1] - peg[1]) < limit[0] and at[2] < limit[1]


@njit
def view_size(m):
    """How many numbers `view` writes."""
    return 12 * (m.ngeom + m.nsite + m.ncam) + 6 * m.nlight


@njit
def view(m, d, out):
    """Where everything stands: the fields of painter.py's SEEN, in its order."""
    start = 0
    for address, count in (
        (d.geom_xpos, 3 * m.ngeom), (d.geom_xmat, 9 * m.ngeom), (d.site_xpos, 3 * m.nsite),
        (d.site_xmat, 9 * m.nsite), (d.cam_xpos, 3 * m.ncam), (d.cam_xmat, 9 * m.ncam),
        (d.light_xpos, 3 * m.nlight), (d.light_xdir, 3 * m.nlight),
    ):
        out[start : start + count] = doubles(address, 0, count)
        start += count


@njit
def succeeded(batch, m, d):
    """Whether the task is done."""
    task = task_of(batch)
    if task.success == ALL_TOUCHING:
        return all_touching(batch, m, d)
    at = doubles(d.xpos, 3 * task.success_body, 3)
    if task.success == ABOVE:
        return at[2] > task.limit[0]
    away = doubles(d.site_xpos, 3 * task.arm[0].site, 3) - at
    distance = math.sqrt(away[0] * away[0] + away[1] * away[1] + away[2] * away[2])
    return 1.0 - math.tanh(10.0 * distance) < 0.6 and in_place(task, d, at)  # no longer held
