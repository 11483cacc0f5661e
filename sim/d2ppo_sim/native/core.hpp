// The plain structures that Python fills and C++ works on (mirrored, field by field, in layout.py).
// Python owns all memory; nothing here outlives a call.
#pragma once

#include <mujoco/mujoco.h>

namespace d2 {

constexpr int kJoints = 7;
constexpr int kMaxArms = 2;
constexpr int kMaxReads = 32;

struct Arm {
  int site;                  // grip site: what OSC_POSE controls
  int hand;                  // body whose orientation is observed
  int qpos[kJoints];         // addresses in qpos
  int dof[kJoints];          // addresses in qvel
  int motor[kJoints];        // addresses in ctrl
  int finger_qpos[2];
  int finger_motor[2];
};

// One piece of the "object" observation.
enum ReadKind : int {
  kBodyPosition = 0,         // 3: position of body `id`
  kBodyQuaternion = 1,       // 4: its quaternion, xyzw
  kBodyQuaternionFromMatrix = 2,  // 4: the same, through robosuite's float32 eigenvector
  kGeomPosition = 3,         // 3
  kGeomQuaternionFromMatrix = 4,  // 4
  kGripMinusBody = 5,        // 3: grip site of `arm` minus body `id`
  kBodyMinusGrip = 6,        // 3
  kGeomMinusGrip = 7,        // 3
  kBodyInHand = 8,           // 7: pose of body `id` in the frame (grip site, hand body) of `arm`
  kTouching = 9,             // 1: whether a geom of group bit `id` touches one of group bit `other`
};

struct Read {
  int kind, id, other, arm;
};

enum SuccessKind : int {
  kAbove = 0,                // body higher than limit[0]
  kInBoxReleased = 1,        // body inside limit[0:3]..limit[3:6], and the hand of arm 0 away from it
  kOnPegReleased = 2,        // |dx|, |dy| to body `other` below limit[0], z below limit[1], and the hand away
  kAllTouching = 3,          // every kTouching entry of the observation
};

struct Task {
  int arms;
  int substeps;              // physics steps in a control step
  Arm arm[kMaxArms];
  int reads;
  Read read[kMaxReads];
  int success, success_body, success_other, unused;
  double limit[6];
  double kp, kd;             // of the operational space: 1/s^2, 1/s
  double posture_kp;         // of the null space
  double position_scale, rotation_scale;  // m, rad at an action of 1
  double gripper_speed;      // of the normalised finger command, per substep
};

// What the controller of one arm remembers.
struct Control {
  double posture[kJoints];   // rad: the arm at the reset, towards which the null space pulls
  double goal_position[3];   // m
  double goal_rotation[9];   // row-major
  double finger[2];          // normalised commands, -1..1
  double first_mass[kJoints * kJoints];  // mass matrix of the first substep after a reset
  double has_first_mass;     // 1 until that substep
};

struct Batch {
  const Task* task;
  const mjModel** models;    // (N), of equal sizes; may all be the same
  mjData** data;             // (N)
  Control* control;          // (N, arms)
  double* history;           // (N, L, Do), oldest first
  double* views;             // (N, L, view_size(model)): where everything stood, for pictures; null: not wanted
  long long* steps;          // (N) control steps of the running episode
  unsigned char* over;       // (N)
  const unsigned char* geom_group;  // (ngeom) bits for kTouching
  void* eigen;               // LAPACK's ssyevd
  int history_length, observation_size, max_steps, terminate_at_success;
};

struct Outcome {
  double reward;
  long long control_steps;
  unsigned char terminated, truncated, success, diverged;
};

}  // namespace d2
