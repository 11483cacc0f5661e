// OSC_POSE and the gripper, with robosuite 1.4.1's semantics: see Khatib 1987 for the method.
#pragma once

#include <algorithm>
#include <cmath>

#include "core.hpp"

namespace d2 {

// Solve A X = B in place (B becomes X) by Gaussian elimination with partial pivoting.
template <int N, int K>
void solve(double (&a)[N][N], double (&b)[N][K]) {
  for (int column = 0; column < N; ++column) {
    int pivot = column;
    for (int r = column + 1; r < N; ++r)
      if (std::fabs(a[r][column]) > std::fabs(a[pivot][column])) pivot = r;
    for (int c = 0; c < N; ++c) std::swap(a[column][c], a[pivot][c]);
    for (int c = 0; c < K; ++c) std::swap(b[column][c], b[pivot][c]);
    for (int r = column + 1; r < N; ++r) {
      const double factor = a[r][column] / a[column][column];
      for (int c = column; c < N; ++c) a[r][c] -= factor * a[column][c];
      for (int c = 0; c < K; ++c) b[r][c] -= factor * b[column][c];
    }
  }
  for (int r = N - 1; r >= 0; --r)
    for (int c = 0; c < K; ++c) {
      for (int i = r + 1; i < N; ++i) b[r][c] -= a[r][i] * b[i][c];
      b[r][c] /= a[r][r];
    }
}

inline double clip(double value, double low, double high) { return std::min(std::max(value, low), high); }

// Rotation matrix (row-major) of a quaternion wxyz, rounded to float32 where robosuite rounds.
inline void rotation_of(const double quaternion[4], double out[9]) {
  float q[4], p[4][4];
  double squares = 0.0;
  for (int i = 0; i < 4; ++i) q[i] = static_cast<float>(quaternion[i]);
  for (int i = 0; i < 4; ++i) {
    const float square = q[i] * q[i];
    squares += square;
  }
  const double scale = std::sqrt(2.0 / static_cast<float>(squares));
  for (int i = 0; i < 4; ++i) q[i] = static_cast<float>(q[i] * scale);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) p[i][j] = q[i] * q[j];
  const auto off = [](float value) { return static_cast<double>(value); };
  const double matrix[9] = {
      1.0 - p[2][2] - p[3][3], off(p[1][2] - p[3][0]), off(p[1][3] + p[2][0]),
      off(p[1][2] + p[3][0]), 1.0 - p[1][1] - p[3][3], off(p[2][3] - p[1][0]),
      off(p[1][3] - p[2][0]), off(p[2][3] + p[1][0]), 1.0 - p[1][1] - p[2][2]};
  std::copy(matrix, matrix + 9, out);
}

// The goal of a control step: the present pose plus the scaled action. Without rotation the old orientation stays.
inline void set_goal(const Task& task, const Arm& arm, const mjData* d, const double* action, Control& control) {
  const double* position = d->site_xpos + 3 * arm.site;
  const double* rotation = d->site_xmat + 9 * arm.site;
  double turn[3], angle = 0.0;
  for (int i = 0; i < 3; ++i) {
    control.goal_position[i] = position[i] + task.position_scale * clip(action[i], -1.0, 1.0);
    turn[i] = task.rotation_scale * clip(action[3 + i], -1.0, 1.0);
    angle += turn[i] * turn[i];
  }
  if (turn[0] == 0.0 && turn[1] == 0.0 && turn[2] == 0.0) return;
  angle = std::sqrt(angle);
  double quaternion[4] = {1.0, 0.0, 0.0, 0.0}, delta[9];
  if (angle > 0.0) {
    quaternion[0] = std::cos(angle / 2.0);
    for (int i = 0; i < 3; ++i) quaternion[1 + i] = turn[i] / angle * std::sin(angle / 2.0);
  }
  rotation_of(quaternion, delta);
  mju_mulMatMat(control.goal_rotation, delta, rotation, 3, 3, 3);
}

// Mass matrix of the arm's joints, from MuJoCo's sparse one: row i holds dof i and its ancestors.
inline void mass_matrix(const mjModel* m, const mjData* d, const Arm& arm, double out[kJoints][kJoints]) {
  for (int i = 0; i < kJoints; ++i)
    for (int j = 0; j < kJoints; ++j) out[i][j] = 0.0;
  for (int i = 0; i < kJoints; ++i) {
    int address = m->dof_Madr[arm.dof[i]];
    for (int dof = arm.dof[i]; dof >= 0; dof = m->dof_parentid[dof], ++address)
      for (int j = 0; j <= i; ++j)
        if (arm.dof[j] == dof) out[i][j] = out[j][i] = d->qM[address];
  }
}

// Columns of the grip site's Jacobian that belong to the arm: rows are linear, then angular.
inline void jacobian(const mjModel* m, const mjData* d, const Arm& arm, double out[6][kJoints]) {
  const int root = m->body_rootid[m->site_bodyid[arm.site]];
  double offset[3], swept[3];
  for (int i = 0; i < 3; ++i) offset[i] = d->site_xpos[3 * arm.site + i] - d->subtree_com[3 * root + i];
  for (int j = 0; j < kJoints; ++j) {
    const double* screw = d->cdof + 6 * arm.dof[j];  // angular, linear
    mju_cross(swept, screw, offset);
    for (int i = 0; i < 3; ++i) {
      out[i][j] = screw[3 + i] + swept[i];
      out[3 + i][j] = screw[i];
    }
  }
}

// Wrench that operational-space control wants: forces decoupled from torques.
inline void wrench(const Task& task, const Arm& arm, const mjData* d, const Control& control,
                   const double (&jac)[6][kJoints], const double (&inertia)[6][6], double out[6]) {
  const double* position = d->site_xpos + 3 * arm.site;
  const double* now = d->site_xmat + 9 * arm.site;
  const double* goal = control.goal_rotation;
  double speed[6] = {0}, error[6] = {0};
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < kJoints; ++j) speed[i] += jac[i][j] * d->qvel[arm.dof[j]];
  for (int i = 0; i < 3; ++i) error[i] = control.goal_position[i] - position[i];
  for (int column = 0; column < 3; ++column) {  // half the sum of the cross products of the axes
    const double a[3] = {now[column], now[3 + column], now[6 + column]};
    const double b[3] = {goal[column], goal[3 + column], goal[6 + column]};
    double cross[3];
    mju_cross(cross, a, b);
    for (int i = 0; i < 3; ++i) error[3 + i] += 0.5 * cross[i];
  }
  for (int half = 0; half < 2; ++half) {
    double block[3][3], force[3][1];
    for (int i = 0; i < 3; ++i) {
      force[i][0] = error[3 * half + i] * task.kp - speed[3 * half + i] * task.kd;
      for (int j = 0; j < 3; ++j) block[i][j] = inertia[3 * half + i][3 * half + j];
    }
    solve(block, force);
    for (int i = 0; i < 3; ++i) out[3 * half + i] = force[i][0];
  }
}

// Pull of every joint towards the posture of the reset.
inline void posture_torques(const Task& task, const mjData* d, const Arm& arm, const Control& control,
                            const double (&mass)[kJoints][kJoints], double out[kJoints]) {
  const double kd = 2.0 * std::sqrt(task.posture_kp);
  double pull[kJoints];
  for (int i = 0; i < kJoints; ++i)
    pull[i] = task.posture_kp * (control.posture[i] - d->qpos[arm.qpos[i]]) - kd * d->qvel[arm.dof[i]];
  for (int i = 0; i < kJoints; ++i) {
    out[i] = 0.0;
    for (int j = 0; j < kJoints; ++j) out[i] += mass[i][j] * pull[j];
  }
}

// Torques towards the goal, gravity, and the pull of the posture as far as the hand does not feel it.
inline void arm_torques(const Task& task, const mjModel* m, mjData* d, const Arm& arm, Control& control) {
  double mass[kJoints][kJoints], factor[kJoints][kJoints], jac[6][kJoints], weighted[kJoints][6];
  mass_matrix(m, d, arm, mass);
  if (control.has_first_mass != 0.0) {
    std::copy(control.first_mass, control.first_mass + kJoints * kJoints, &mass[0][0]);
    control.has_first_mass = 0.0;
  }
  jacobian(m, d, arm, jac);
  for (int i = 0; i < kJoints; ++i)
    for (int j = 0; j < 6; ++j) weighted[i][j] = jac[j][i];
  std::copy(&mass[0][0], &mass[0][0] + kJoints * kJoints, &factor[0][0]);
  solve(factor, weighted);  // M^-1 J^T
  double inertia[6][6];     // J M^-1 J^T, the inverse of Lambda
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 6; ++j) {
      inertia[i][j] = 0.0;
      for (int k = 0; k < kJoints; ++k) inertia[i][j] += jac[i][k] * weighted[k][j];
    }
  double push[6], posture[kJoints], leak[6][1] = {};
  wrench(task, arm, d, control, jac, inertia, push);
  posture_torques(task, d, arm, control, mass, posture);
  for (int j = 0; j < 6; ++j)
    for (int i = 0; i < kJoints; ++i) leak[j][0] += weighted[i][j] * posture[i];
  solve(inertia, leak);  // what of the posture would be felt at the hand
  for (int i = 0; i < kJoints; ++i) {
    double torque = d->qfrc_bias[arm.dof[i]] + posture[i];
    for (int j = 0; j < 6; ++j) torque += jac[j][i] * (push[j] - leak[j][0]);
    const double* range = m->actuator_ctrlrange + 2 * arm.motor[i];
    d->ctrl[arm.motor[i]] = clip(torque, range[0], range[1]);
  }
}

// The fingers' command moves at a fixed rate in the direction of the action's sign: +1 closes.
inline void fingers(const Task& task, const mjModel* m, mjData* d, const Arm& arm, double action, Control& control) {
  const double sign = (action > 0.0) - (action < 0.0);
  for (int f = 0; f < 2; ++f) {
    const double direction = f == 0 ? -1.0 : 1.0;
    control.finger[f] = clip(control.finger[f] + direction * task.gripper_speed * sign, -1.0, 1.0);
    const double* range = m->actuator_ctrlrange + 2 * arm.finger_motor[f];
    d->ctrl[arm.finger_motor[f]] = 0.5 * (range[1] + range[0]) + 0.5 * (range[1] - range[0]) * control.finger[f];
  }
}

}  // namespace d2
