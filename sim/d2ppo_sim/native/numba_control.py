"""OSC_POSE and the gripper by numba: control.hpp, function by function."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .layout import JOINTS
from .numba_memory import doubles, integers


@njit(error_model="numpy")
def solve(a, b):
    """Solve A X = B in place (B (n, k) becomes X) by Gaussian elimination with partial pivoting."""
    n, k = b.shape
    for column in range(n):
        pivot = column
        for r in range(column + 1, n):
            if abs(a[r, column]) > abs(a[pivot, column]):
                pivot = r
        if pivot != column:
            for c in range(n):
                a[column, c], a[pivot, c] = a[pivot, c], a[column, c]
            for c in range(k):
                b[column, c], b[pivot, c] = b[pivot, c], b[column, c]
        for r in range(column + 1, n):
            factor = a[r, column] / a[column, column]
            for c in range(column, n):
                a[r, c] -= factor * a[column, c]
            for c in range(k):
                b[r, c] -= factor * b[column, c]
    for r in range(n - 1, -1, -1):
        for c in range(k):
            for i in range(r + 1, n):
                b[r, c] -= a[r, i] * b[i, c]
            b[r, c] /= a[r, r]


@njit
def clip(value, low, high):
    return min(max(value, low), high)


@njit
def cross(a, b, out):
    out[0] = a[1] * b[2] - a[2] * b[1]
    out[1] = a[2] * b[0] - a[0] * b[2]
    out[2] = a[0] * b[1] - a[1] * b[0]


@njit(error_model="numpy")
def rotation_of(quaternion, out):
    """Rotation matrix (9,) of a quaternion wxyz, rounded to float32 where robosuite rounds."""
    q, p = np.empty(4, np.float32), np.empty((4, 4), np.float32)
    squares = 0.0
    for i in range(4):
        q[i] = quaternion[i]
        squares += np.float64(q[i] * q[i])
    scale = math.sqrt(2.0 / np.float64(np.float32(squares)))
    for i in range(4):
        q[i] = np.float64(q[i]) * scale
    for i in range(4):
        for j in range(4):
            p[i, j] = q[i] * q[j]
    out[0] = 1.0 - np.float64(p[2, 2]) - np.float64(p[3, 3])
    out[1] = p[1, 2] - p[3, 0]
    out[2] = p[1, 3] + p[2, 0]
    out[3] = p[1, 2] + p[3, 0]
    out[4] = 1.0 - np.float64(p[1, 1]) - np.float64(p[3, 3])
    out[5] = p[2, 3] - p[1, 0]
    out[6] = p[1, 3] - p[2, 0]
    out[7] = p[2, 3] + p[1, 0]
    out[8] = 1.0 - np.float64(p[1, 1]) - np.float64(p[2, 2])


@njit(error_model="numpy")
def set_goal(task, arm, d, action, control):
    """The present pose plus the scaled action (7,). Without rotation the old orientation stays."""
    position, rotation = doubles(d.site_xpos, 3 * arm.site, 3), doubles(d.site_xmat, 9 * arm.site, 9)
    turn, angle = np.empty(3), 0.0
    for i in range(3):
        control.goal_position[i] = position[i] + task.position_scale * clip(action[i], -1.0, 1.0)
        turn[i] = task.rotation_scale * clip(action[3 + i], -1.0, 1.0)
        angle += turn[i] * turn[i]
    if turn[0] == 0.0 and turn[1] == 0.0 and turn[2] == 0.0:
        return
    angle = math.sqrt(angle)
    quaternion, delta = np.zeros(4), np.empty(9)
    quaternion[0] = 1.0
    if angle > 0.0:
        quaternion[0] = math.cos(angle / 2.0)
        for i in range(3):
            quaternion[1 + i] = turn[i] / angle * math.sin(angle / 2.0)
    rotation_of(quaternion, delta)
    for i in range(3):
        for j in range(3):
            control.goal_rotation[3 * i + j] = (
                delta[3 * i] * rotation[j] + delta[3 * i + 1] * rotation[3 + j] + delta[3 * i + 2] * rotation[6 + j])


@njit
def mass_matrix(m, d, arm, out):
    """Mass matrix (7, 7) of the arm's joints, from MuJoCo's sparse one: row i holds dof i and its ancestors."""
    starts, parents = integers(m.dof_Madr, m.nv), integers(m.dof_parentid, m.nv)
    out[:] = 0.0
    for i in range(JOINTS):
        address, dof = starts[arm.dof[i]], arm.dof[i]
        while dof >= 0:
            for j in range(i + 1):
                if arm.dof[j] == dof:
                    out[i, j] = out[j, i] = doubles(d.qM, address, 1)[0]
            dof, address = parents[dof], address + 1


@njit
def jacobian(m, d, arm, out):
    """Columns (6, 7) of the grip site's Jacobian that belong to the arm: rows are linear, then angular."""
    site = doubles(d.site_xpos, 3 * arm.site, 3)
    root = integers(m.body_rootid, arm.hand + 1)[integers(m.site_bodyid, arm.site + 1)[arm.site]]
    centre = doubles(d.subtree_com, 3 * root, 3)
    offset, swept = np.empty(3), np.empty(3)
    for i in range(3):
        offset[i] = site[i] - centre[i]
    for j in range(JOINTS):
        screw = doubles(d.cdof, 6 * arm.dof[j], 6)  # angular, linear
        cross(screw, offset, swept)
        for i in range(3):
            out[i, j] = screw[3 + i] + swept[i]
            out[3 + i, j] = screw[i]


@njit(error_model="numpy")
def wrench(task, arm, d, control, jac, inertia, out):
    """Wrench (6,) that operational-space control wants: forces decoupled from torques."""
    position, now = doubles(d.site_xpos, 3 * arm.site, 3), doubles(d.site_xmat, 9 * arm.site, 9)
    goal = control.goal_rotation
    speed, error, swept = np.zeros(6), np.zeros(6), np.empty(3)
    block, force = np.empty((3, 3)), np.empty((3, 1))
    for j in range(JOINTS):
        velocity = doubles(d.qvel, arm.dof[j], 1)[0]
        for i in range(6):
            speed[i] += jac[i, j] * velocity
    for i in range(3):
        error[i] = control.goal_position[i] - position[i]
    for column in range(3):  # half the sum of the cross products of the axes
        cross(now[column::3], goal[column::3], swept)
        for i in range(3):
            error[3 + i] += 0.5 * swept[i]
    for half in range(2):
        for i in range(3):
            force[i, 0] = error[3 * half + i] * task.kp - speed[3 * half + i] * task.kd
            for j in range(3):
                block[i, j] = inertia[3 * half + i, 3 * half + j]
        solve(block, force)
        for i in range(3):
            out[3 * half + i] = force[i, 0]


@njit
def posture_torques(task, m, d, arm, control, mass, out):
    """Pull (7,) of every joint towards the posture of the reset."""
    qpos, qvel = doubles(d.qpos, 0, m.nq), doubles(d.qvel, 0, m.nv)
    kd, pull = 2.0 * math.sqrt(task.posture_kp), np.empty(JOINTS)
    for i in range(JOINTS):
        pull[i] = task.posture_kp * (control.posture[i] - qpos[arm.qpos[i]]) - kd * qvel[arm.dof[i]]
    for i in range(JOINTS):
        out[i] = 0.0
        for j in range(JOINTS):
            out[i] += mass[i, j] * pull[j]


@njit(error_model="numpy")
def arm_torques(task, m, d, arm, control):
    """Torques towards the goal, gravity, and the pull of the posture as far as the hand does not feel it."""
    mass, jac, weighted = np.empty((JOINTS, JOINTS)), np.empty((6, JOINTS)), np.empty((JOINTS, 6))
    mass_matrix(m, d, arm, mass)
    if control.has_first_mass != 0.0:
        for i in range(JOINTS):
            for j in range(JOINTS):
                mass[i, j] = control.first_mass[JOINTS * i + j]
        control.has_first_mass = 0.0
    jacobian(m, d, arm, jac)
    weighted[:] = jac.T
    solve(mass.copy(), weighted)  # M^-1 J^T
    inertia = np.zeros((6, 6))  # J M^-1 J^T, the inverse of Lambda
    for i in range(6):
        for j in range(6):
            for k in range(JOINTS):
                inertia[i, j] += jac[i, k] * weighted[k, j]
    push, posture, leak = np.empty(6), np.empty(JOINTS), np.zeros((6, 1))
    wrench(task, arm, d, control, jac, inertia, push)
    posture_torques(task, m, d, arm, control, mass, posture)
    for j in range(6):
        for i in range(JOINTS):
            leak[j, 0] += weighted[i, j] * posture[i]
    solve(inertia, leak)  # what of the posture would be felt at the hand
    bias, ctrl = doubles(d.qfrc_bias, 0, m.nv), doubles(d.ctrl, 0, m.nu)
    for i in range(JOINTS):
        torque = bias[arm.dof[i]] + posture[i]
        for j in range(6):
            torque += jac[j, i] * (push[j] - leak[j, 0])
        allowed = doubles(m.actuator_ctrlrange, 2 * arm.motor[i], 2)
        ctrl[arm.motor[i]] = clip(torque, allowed[0], allowed[1])


@njit
def fingers(task, m, d, arm, action, control):
    """The fingers' command moves at a fixed rate in the direction of the action's sign: +1 closes."""
    sign, ctrl = np.sign(action), doubles(d.ctrl, 0, m.nu)
    for f in range(2):
        direction = -1.0 if f == 0 else 1.0
        control.finger[f] = clip(control.finger[f] + direction * task.gripper_speed * sign, -1.0, 1.0)
        allowed = doubles(m.actuator_ctrlrange, 2 * arm.finger_motor[f], 2)
        middle, half = 0.5 * (allowed[1] + allowed[0]), 0.5 * (allowed[1] - allowed[0])
        ctrl[arm.finger_motor[f]] = middle + half * control.finger[f]
