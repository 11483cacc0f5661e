"""ctypes mirrors of the structures in core.hpp, field by field. `check` compares their sizes with the compiled ones."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_int, c_longlong, c_ubyte, c_void_p

MAX_ARMS, MAX_READS, JOINTS = 2, 32, 7

READS = {
    "body_position": 0, "body_quaternion": 1, "body_quaternion_from_matrix": 2, "geom_position": 3,
    "geom_quaternion_from_matrix": 4, "grip_minus_body": 5, "body_minus_grip": 6, "geom_minus_grip": 7,
    "body_in_hand": 8, "touching": 9,
}
SUCCESSES = {"above": 0, "in_box_released": 1, "on_peg_released": 2, "all_touching": 3}


class CArm(Structure):
    _fields_ = (
        ("site", c_int), ("hand", c_int), ("qpos", c_int * JOINTS), ("dof", c_int * JOINTS),
        ("motor", c_int * JOINTS), ("finger_qpos", c_int * 2), ("finger_motor", c_int * 2),
    )


class CRead(Structure):
    _fields_ = (("kind", c_int), ("id", c_int), ("other", c_int), ("arm", c_int))


class CTask(Structure):
    _fields_ = (
        ("arms", c_int), ("substeps", c_int), ("arm", CArm * MAX_ARMS),
        ("reads", c_int), ("read", CRead * MAX_READS),
        ("success", c_int), ("success_body", c_int), ("success_other", c_int), ("unused", c_int),
        ("limit", c_double * 6), ("kp", c_double), ("kd", c_double), ("posture_kp", c_double),
        ("position_scale", c_double), ("rotation_scale", c_double), ("gripper_speed", c_double),
    )


class CControl(Structure):
    _fields_ = (
        ("posture", c_double * JOINTS), ("goal_position", c_double * 3), ("goal_rotation", c_double * 9),
        ("finger", c_double * 2), ("first_mass", c_double * JOINTS**2), ("has_first_mass", c_double),
    )


class CBatch(Structure):
    _fields_ = (
        ("task", POINTER(CTask)), ("models", POINTER(c_void_p)), ("data", POINTER(c_void_p)),
        ("control", POINTER(CControl)), ("history", c_void_p), ("views", c_void_p), ("steps", c_void_p),
        ("over", c_void_p), ("geom_group", c_void_p), ("eigen", c_void_p),
        ("history_length", c_int), ("observation_size", c_int), ("max_steps", c_int), ("terminate_at_success", c_int),
    )


class COutcome(Structure):
    _fields_ = (
        ("reward", c_double), ("control_steps", c_longlong),
        ("terminated", c_ubyte), ("truncated", c_ubyte), ("success", c_ubyte), ("diverged", c_ubyte),
    )


SIGNATURES = {
    "d2_sizes": (c_void_p,),
    "d2_set_arena": (c_void_p, c_longlong),
    "d2_reset": (POINTER(CBatch), c_int, c_void_p, c_void_p, c_int),
    "d2_step": (POINTER(CBatch), c_int, c_void_p, c_void_p, c_int, c_int, c_void_p),
    "d2_observe": (POINTER(CBatch), c_int, c_void_p),
    "d2_tape": (POINTER(CBatch), c_int, c_void_p, c_void_p),
    "d2_bare": (c_void_p, c_void_p, c_void_p, c_int, c_int, c_int),
    "d2_rotation_of": (c_void_p, c_void_p),
    "d2_quaternion_of": (c_void_p, c_void_p, c_void_p),
}


def declare(core: ctypes.CDLL) -> ctypes.CDLL:
    """Give each function its argument types, and check that both sides mean the same structures."""
    for name, arguments in SIGNATURES.items():
        function = getattr(core, name)
        function.argtypes, function.restype = arguments, None
    sizes = (c_int * 4)()
    core.d2_sizes(sizes)
    mirrored = [ctypes.sizeof(kind) for kind in (CTask, CControl, CBatch, COutcome)]
    if list(sizes) != mirrored:
        raise RuntimeError(f"core.hpp and layout.py differ: {list(sizes)} and {mirrored} bytes")
    return core
