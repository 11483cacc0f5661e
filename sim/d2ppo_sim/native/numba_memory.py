"""The C structures as numba sees them, and the C functions that it calls: what numba_*.py and C++ share.

MuJoCo describes its own structures (`mujoco.introspect`), layout.py ours; numpy lays them out as a C compiler would.
Addresses are integers throughout.
"""

from __future__ import annotations

import ctypes

import llvmlite.binding
import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from . import layout
from .compiler import eigen_address, mujoco_library
from .structures import mujoco_structure


def _chosen(structure: np.dtype, names: tuple[str, ...]) -> np.dtype:
    """The same structure with only these fields: numba's compile time grows with every field."""
    fields = [structure.fields[name] for name in names]
    return np.dtype({"names": names, "formats": [f[0] for f in fields], "offsets": [f[1] for f in fields],
                     "itemsize": structure.itemsize})


def _own_structure(kind: type[ctypes.Structure]) -> np.dtype:
    """One of layout.py's structures, pointers as integers."""
    pointers = (ctypes.c_void_p, ctypes._Pointer)
    return np.dtype([(name, "intp" if issubclass(type_, pointers) else type_) for name, type_ in kind._fields_],
                    align=True)


MODEL = _chosen(mujoco_structure("mjModel"), (
    "nq", "nv", "nu", "ngeom", "nsite", "ncam", "nlight", "qpos0", "dof_Madr", "dof_parentid", "body_rootid",
    "site_bodyid", "actuator_ctrlrange"))
DATA = _chosen(mujoco_structure("mjData"), (
    "ncon", "contact", "warning", "qpos", "qvel", "ctrl", "site_xpos", "site_xmat", "subtree_com", "cdof", "qM",
    "qfrc_bias", "xpos", "xquat", "xmat", "geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir"))
CONTACT = _chosen(mujoco_structure("mjContact"), ("geom1", "geom2"))
NARENA = mujoco_structure("mjModel").fields["narena"][1]  # bytes into the structure
TASK, CONTROL, BATCH, OUTCOME = map(
    _own_structure, (layout.CTask, layout.CControl, layout.CBatch, layout.COutcome))
CONTROL_BYTES = CONTROL.itemsize


@intrinsic
def _pointer(context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), generate


@njit
def doubles(address, first, count):
    """(count,) float64 at `address`, without the `first` ones."""
    return carray(_pointer(address + 8 * first), count, np.float64)


@njit
def integers(address, count):
    """(count,) int32."""
    return carray(_pointer(address), count, np.int32)


@njit
def octets(address, count):
    """(count,) uint8."""
    return carray(_pointer(address), count, np.uint8)


@njit
def addresses(address, count):
    """(count,) addresses."""
    return carray(_pointer(address), count, np.intp)


@njit
def contacts(d):
    """(ncon,) structures."""
    return carray(_pointer(d.contact), d.ncon, CONTACT)


@njit
def model_at(address):
    """The `MODEL` at an address."""
    return carray(_pointer(address), 1, MODEL)[0]


@njit
def data_at(address):
    """The `DATA` at an address."""
    return carray(_pointer(address), 1, DATA)[0]


@njit
def batch_at(address):
    """The `BATCH` at an address."""
    return carray(_pointer(address), 1, BATCH)[0]


@njit
def task_of(batch):
    """The `TASK` of a batch."""
    return carray(_pointer(batch.task), 1, TASK)[0]


@njit
def controls_of(batch, env):
    """(arms,) what the controllers of one environment remember."""
    arms = task_of(batch).arms
    return carray(_pointer(batch.control + env * arms * CONTROL_BYTES), arms, CONTROL)


@njit
def outcome_at(address):
    """The `OUTCOME` at an address."""
    return carray(_pointer(address), 1, OUTCOME)[0]


# Compiled code keeps only the names, so it can be cached: where the functions lie differs from process to process.
llvmlite.binding.load_library_permanently(str(mujoco_library()))
llvmlite.binding.add_symbol("d2_ssyevd", eigen_address())


def _external(name: str, arguments: int) -> types.ExternalFunction:
    return types.ExternalFunction(name, types.void(*[types.intp] * arguments))


mj_resetData, mj_fwdPosition, mj_forward = (
    _external(name, 2) for name in ("mj_resetData", "mj_fwdPosition", "mj_forward"))
mj_step, mj_step1, mj_step2 = (_external(name, 2) for name in ("mj_step", "mj_step1", "mj_step2"))
ssyevd = _external("d2_ssyevd", 11)
