// Observations and success, read straight after the last physics step, as robosuite samples them.
#pragma once

#include <cmath>

#include "control.hpp"

namespace d2 {

using Eigen = void (*)(char*, char*, int*, float*, int*, float*, float*, int*, int*, int*, int*);

// Quaternion xyzw of a rotation matrix (row-major): robosuite's way, the top eigenvector of a float32 matrix, w >= 0.
inline void quaternion_of(Eigen eigen, const double rotation[9], double out[4]) {
  float m[9], k[16] = {0}, values[4], work[128];
  for (int i = 0; i < 9; ++i) m[i] = static_cast<float>(rotation[i]);
  // Lower triangle, column-major.
  k[0] = m[0] - m[4] - m[8];
  k[1] = m[1] + m[3];
  k[2] = m[2] + m[6];
  k[3] = m[7] - m[5];
  k[5] = m[4] - m[0] - m[8];
  k[6] = m[5] + m[7];
  k[7] = m[2] - m[6];
  k[10] = m[8] - m[0] - m[4];
  k[11] = m[3] - m[1];
  k[15] = m[0] + m[4] + m[8];
  for (float& value : k) value = static_cast<float>(value / 3.0);
  char vectors = 'V', lower = 'L';
  int n = 4, work_size = 128, whole[64], whole_size = 64, info = 0;
  eigen(&vectors, &lower, &n, k, &n, values, work, &work_size, whole, &whole_size, &info);
  const float* top = k + 12;  // eigenvalues ascend
  const float sign = top[3] < 0.0f ? -1.0f : 1.0f;
  for (int i = 0; i < 4; ++i) out[i] = sign * top[i];
}

inline void to_xyzw(const double wxyz[4], double out[4]) {
  for (int i = 0; i < 4; ++i) out[i] = wxyz[(i + 1) % 4];
}

// Pose of a body in the frame of the hand: positions and rotations pass through float32 on the way, as in robosuite.
inline void pose_in_hand(Eigen eigen, const Arm& arm, const mjData* d, int body, double out[7]) {
  double hand[9], object[9], moved[3], relative[9], inverse[3];
  rotation_of(d->xquat + 4 * arm.hand, hand);
  rotation_of(d->xquat + 4 * body, object);
  for (int i = 0; i < 9; ++i) {
    hand[i] = static_cast<float>(hand[i]);
    object[i] = static_cast<float>(object[i]);
  }
  for (int i = 0; i < 3; ++i) {
    inverse[i] = 0.0;
    for (int j = 0; j < 3; ++j) inverse[i] -= hand[3 * j + i] * static_cast<float>(d->site_xpos[3 * arm.site + j]);
  }
  for (int i = 0; i < 3; ++i) {
    moved[i] = 0.0;
    for (int j = 0; j < 3; ++j) moved[i] += hand[3 * j + i] * static_cast<float>(d->xpos[3 * body + j]);
    out[i] = moved[i] + inverse[i];
  }
  mju_mulMatTMat(relative, hand, object, 3, 3, 3);
  quaternion_of(eigen, relative, out + 3);
}

inline bool touching(const Batch& b, const mjData* d, int one, int other) {
  for (int i = 0; i < d->ncon; ++i) {
    const int first = b.geom_group[std::max(d->contact[i].geom1, 0)];
    const int second = b.geom_group[std::max(d->contact[i].geom2, 0)];
    if (((first & one) && (second & other)) || ((first & other) && (second & one))) return true;
  }
  return false;
}

// Write one piece of the "object" observation; returns how many numbers it has.
inline int read_one(const Batch& b, const mjData* d, const Read& read, double* out) {
  const auto eigen = reinterpret_cast<Eigen>(b.eigen);
  const Arm& arm = b.task->arm[read.arm];
  const double* grip = d->site_xpos + 3 * arm.site;
  switch (read.kind) {
    case kBodyPosition: mju_copy3(out, d->xpos + 3 * read.id); return 3;
    case kBodyQuaternion: to_xyzw(d->xquat + 4 * read.id, out); return 4;
    case kBodyQuaternionFromMatrix: quaternion_of(eigen, d->xmat + 9 * read.id, out); return 4;
    case kGeomPosition: mju_copy3(out, d->geom_xpos + 3 * read.id); return 3;
    case kGeomQuaternionFromMatrix: quaternion_of(eigen, d->geom_xmat + 9 * read.id, out); return 4;
    case kGripMinusBody: mju_sub3(out, grip, d->xpos + 3 * read.id); return 3;
    case kBodyMinusGrip: mju_sub3(out, d->xpos + 3 * read.id, grip); return 3;
    case kGeomMinusGrip: mju_sub3(out, d->geom_xpos + 3 * read.id, grip); return 3;
    case kBodyInHand: pose_in_hand(eigen, arm, d, read.id, out); return 7;
    case kTouching: out[0] = touching(b, d, read.id, read.other); return 1;
  }
  return 0;
}

// The whole observation: of each arm grip position, hand quaternion, fingers; then "object".
inline void observe(const Batch& b, const mjData* d, double* out) {
  for (int a = 0; a < b.task->arms; ++a) {
    const Arm& arm = b.task->arm[a];
    mju_copy3(out, d->site_xpos + 3 * arm.site);
    to_xyzw(d->xquat + 4 * arm.hand, out + 3);
    for (int f = 0; f < 2; ++f) out[7 + f] = d->qpos[arm.finger_qpos[f]];
    out += 9;
  }
  for (int r = 0; r < b.task->reads; ++r) out += read_one(b, d, b.task->read[r], out);
}

// How many numbers `view` writes.
inline int view_size(const mjModel* m) { return 12 * (m->ngeom + m->nsite + m->ncam) + 6 * m->nlight; }

// Where everything stands: the fields of painter.py's SEEN, in its order.
inline void view(const mjModel* m, const mjData* d, double* out) {
  const struct { const double* from; int count; } parts[] = {
      {d->geom_xpos, 3 * m->ngeom}, {d->geom_xmat, 9 * m->ngeom}, {d->site_xpos, 3 * m->nsite},
      {d->site_xmat, 9 * m->nsite}, {d->cam_xpos, 3 * m->ncam}, {d->cam_xmat, 9 * m->ncam},
      {d->light_xpos, 3 * m->nlight}, {d->light_xdir, 3 * m->nlight}};
  for (const auto& part : parts) {
    std::copy(part.from, part.from + part.count, out);
    out += part.count;
  }
}

inline bool succeeded(const Batch& b, const mjData* d) {
  const Task& task = *b.task;
  const double* at = d->xpos + 3 * task.success_body;
  const double* limit = task.limit;
  if (task.success == kAbove) return at[2] > limit[0];
  if (task.success == kAllTouching) {
    for (int r = 0; r < task.reads; ++r)
      if (task.read[r].kind == kTouching && !touching(b, d, task.read[r].id, task.read[r].other)) return false;
    return true;
  }
  const double* grip = d->site_xpos + 3 * task.arm[0].site;
  double away[3];
  mju_sub3(away, grip, at);
  const double distance = std::sqrt(away[0] * away[0] + away[1] * away[1] + away[2] * away[2]);
  if (!(1.0 - std::tanh(10.0 * distance) < 0.6)) return false;  // still held
  if (task.success == kInBoxReleased) {
    for (int i = 0; i < 3; ++i)
      if (!(limit[i] < at[i] && at[i] < limit[3 + i])) return false;
    return true;
  }
  const double* peg = d->xpos + 3 * task.success_other;
  return std::fabs(at[0] - peg[0]) < limit[0] && std::fabs(at[1] - peg[1]) < limit[0] && at[2] < limit[1];
}

}  // namespace d2
