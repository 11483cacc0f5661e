// Many environments, each stepped through a whole action chunk without Python in between.
#include <atomic>
#include <cmath>
#include <system_error>
#include <thread>
#include <vector>

#include "reading.hpp"

namespace d2 {
namespace {

constexpr mjtWarning kBad[] = {mjWARN_BADQPOS, mjWARN_BADQVEL, mjWARN_BADQACC, mjWARN_BADCTRL};

// MuJoCo prints a warning the first time it counts one. Counting from one keeps its threads silent.
void arm_warnings(mjData* d) {
  for (int i = 0; i < mjNWARNING; ++i) d->warning[i].number = 1;
}

// On a bad state MuJoCo resets it, which clears every counter, and counts the one kind: so any change tells.
bool state_was_bad(const mjData* d) {
  for (const mjtWarning kind : kBad)
    if (d->warning[kind].number != 1) return true;
  return false;
}

// Move the rows (L, size) of an environment up by one; where to write the newest.
double* push(double* all, int env, int length, long long size) {
  double* rows = all + env * length * size;
  std::copy(rows + size, rows + length * size, rows);
  return rows + (length - 1) * size;
}

void push_history(const Batch& b, int env, const double* newest) {
  std::copy(newest, newest + b.observation_size, push(b.history, env, b.history_length, b.observation_size));
}

// A state that is not finite leaves the last view in place.
void push_view(const Batch& b, int env, bool good = true) {
  if (!b.views) return;
  double* newest = push(b.views, env, b.history_length, view_size(b.models[env]));
  if (good) view(b.models[env], b.data[env], newest);
}

// Start an episode at `qpos`. robosuite builds its controller before it opens the fingers, and that controller's first
// substep uses the mass matrix of that moment.
void start(const Batch& b, int env, const double* qpos) {
  const mjModel* m = b.models[env];
  mjData* d = b.data[env];
  mj_resetData(m, d);
  arm_warnings(d);
  mju_copy(d->qpos, qpos, m->nq);
  for (int a = 0; a < b.task->arms; ++a)
    for (const int address : b.task->arm[a].finger_qpos) d->qpos[address] = m->qpos0[address];
  mj_fwdPosition(m, d);
  for (int a = 0; a < b.task->arms; ++a) {
    double mass[kJoints][kJoints];
    Control& control = b.control[env * b.task->arms + a];
    mass_matrix(m, d, b.task->arm[a], mass);
    std::copy(&mass[0][0], &mass[0][0] + kJoints * kJoints, control.first_mass);
    control.has_first_mass = 1.0;
  }
  mju_copy(d->qpos, qpos, m->nq);
  mj_forward(m, d);
  for (int a = 0; a < b.task->arms; ++a) {
    const Arm& arm = b.task->arm[a];
    Control& control = b.control[env * b.task->arms + a];
    for (int i = 0; i < kJoints; ++i) control.posture[i] = d->qpos[arm.qpos[i]];
    mju_copy3(control.goal_position, d->site_xpos + 3 * arm.site);
    mju_copy(control.goal_rotation, d->site_xmat + 9 * arm.site, 9);
    control.finger[0] = control.finger[1] = 0.0;
  }
  std::vector<double> seen(b.observation_size);
  observe(b, d, seen.data());
  for (int i = 0; i < b.history_length; ++i) {
    push_history(b, env, seen.data());
    push_view(b, env);
  }
  b.steps[env] = 0;
  b.over[env] = 0;
}

// One control step. False if the state is no longer finite. A tape (substeps, nu) takes down the controls.
bool control_step(const Batch& b, int env, const double* action, double* tape = nullptr) {
  const Task& task = *b.task;
  const mjModel* m = b.models[env];
  mjData* d = b.data[env];
  for (int substep = 0; substep < task.substeps; ++substep) {
    mj_step1(m, d);
    for (int a = 0; a < task.arms; ++a) {
      Control& control = b.control[env * task.arms + a];
      const double* own = action + kJoints * a;  // six of the pose, one of the gripper
      if (substep == 0) set_goal(task, task.arm[a], d, own, control);
      arm_torques(task, m, d, task.arm[a], control);
      fingers(task, m, d, task.arm[a], own[6], control);
    }
    if (tape) mju_copy(tape + substep * m->nu, d->ctrl, m->nu);
    mj_step2(m, d);
    if (state_was_bad(d)) return false;
  }
  return true;
}

bool finite(const std::vector<double>& values) {
  for (const double value : values)
    if (!std::isfinite(value)) return false;
  return true;
}

// Execute a chunk (Ta, Da) open loop, up to the control step that ends the episode.
Outcome run_chunk(const Batch& b, int env, const double* actions, int length) {
  Outcome out = {0.0, 0, 0, 0, 0, 0};
  std::vector<double> seen(b.observation_size);
  double* newest = b.history + (static_cast<long long>(env) + 1) * b.history_length * b.observation_size;
  for (int t = 0; t < length && !b.over[env]; ++t) {
    bool good = control_step(b, env, actions + t * kJoints * b.task->arms);
    if (good) {
      observe(b, b.data[env], seen.data());
      good = finite(seen);
    }
    if (!good) std::copy(newest - b.observation_size, newest, seen.begin());  // the last finite one
    push_history(b, env, seen.data());
    push_view(b, env, good);
    const bool success = good && succeeded(b, b.data[env]);
    out.reward += success;
    out.success |= success;
    out.diverged = !good;
    out.terminated = success && b.terminate_at_success;
    ++out.control_steps;
    ++b.steps[env];
    b.over[env] = out.terminated || out.diverged || b.steps[env] >= b.max_steps;
  }
  out.truncated = b.over[env] && !out.terminated;
  return out;
}

// Call work(0..count-1) from several threads; each result is written to its own place, so their order is free.
template <class Work>
void for_each(int count, int threads, Work work) {
  std::atomic<int> next{0};
  const auto loop = [&] {
    for (int i = next++; i < count; i = next++) work(i);
  };
  std::vector<std::thread> helpers;
  try {
    for (int t = 1; t < std::min(threads, count); ++t) helpers.emplace_back(loop);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are do the work.
  }
  loop();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace
}  // namespace d2

extern "C" {

// Sizes of the structures, so that Python can see that its mirror of them is right.
void d2_sizes(int* out) {
  const int sizes[] = {sizeof(d2::Task), sizeof(d2::Control), sizeof(d2::Batch), sizeof(d2::Outcome)};
  std::copy(sizes, sizes + 4, out);
}

void d2_set_arena(mjModel* model, long long bytes) { model->narena = bytes; }

// Start `envs` (count) at `starts` (count, nq).
void d2_reset(const d2::Batch* batch, int count, const int* envs, const double* starts, int threads) {
  d2::for_each(count, threads, [=](int i) {
    d2::start(*batch, envs[i], starts + static_cast<long long>(i) * batch->models[envs[i]]->nq);
  });
}

// Execute chunks (count, length, Da) in `envs` (count); results (count).
void d2_step(const d2::Batch* batch, int count, const int* envs, const double* chunks, int length, int threads,
             d2::Outcome* results) {
  const long long stride = static_cast<long long>(length) * d2::kJoints * batch->task->arms;
  d2::for_each(count, threads, [=](int i) { results[i] = d2::run_chunk(*batch, envs[i], chunks + i * stride, length); });
}

// Observe what is in one environment's data now, without stepping.
void d2_observe(const d2::Batch* batch, int env, double* out) { d2::observe(*batch, batch->data[env], out); }

// For the benchmark: one control step under `action` whose controls (substeps, nu) are taken down.
void d2_tape(const d2::Batch* batch, int env, const double* action, double* controls) {
  d2::control_step(*batch, env, action, controls);
}

// For the benchmark: the same physics without a controller. In each of `count` data `steps` physics steps under its own
// controls (steps, nu).
void d2_bare(const mjModel** models, mjData** data, const double** controls, int count, int steps, int threads) {
  d2::for_each(count, threads, [=](int i) {
    const mjModel* m = models[i];
    for (int step = 0; step < steps; ++step) {
      mju_copy(data[i]->ctrl, controls[i] + static_cast<long long>(step) * m->nu, m->nu);
      mj_step(m, data[i]);
    }
  });
}

// For tests: robosuite's two conversions between quaternion and matrix.
void d2_rotation_of(const double* wxyz, double* out) { d2::rotation_of(wxyz, out); }
void d2_quaternion_of(void* eigen, const double* rotation, double* out) {
  d2::quaternion_of(reinterpret_cast<d2::Eigen>(eigen), rotation, out);
}

}  // extern "C"
