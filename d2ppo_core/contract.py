"""The data contract: what a policy sees and does. Everything data, simulator and robot must agree on.

A `PolicySpec` is written once, at pre-training, into the checkpoint. A dataset, a simulator and a robot state their own
side as `ObservationSpec` and `ActionSpec`; `require_match` compares them before anything moves. Nothing is guessed.

Letters: B batch, To observation history, H predicted horizon, Ta executed steps, Da action size, Do state size,
K denoising steps of training, S steps taken when sampling, K' of them fine-tuned, C H W image.
Units are SI (m, rad, s); quaternions are xyzw as in robosuite.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from .errors import UserError
from .frozen import Frozen, Positive
from .network_specs import AnySamplerSpec, NetworkSpec

FORMAT = 1  # of the checkpoint file


class LowDim(Frozen):
    """One low-dimensional observation: `size` numbers under `name`."""

    name: str
    size: Positive
    unit: str = "m"
    frame: str = "world"
    body: str = ""  # whose pose it is: robosuite's eef_pos is the grip site, its eef_quat the right_hand body
    convention: str = ""  # e.g. "xyzw, sign as the product of link rotations gives it, never flipped"


class Camera(Frozen):
    """One camera image: `height` x `width`, uint8, in the colour order and with the origin stated.

    `reflections` and `multisampling` are settings of the renderer that change pixels. robosuite's own, and so those of
    any data that do not say, are reflections and 4 samples.
    """

    name: str
    height: Positive
    width: Positive
    colour: Literal["rgb", "bgr"] = "rgb"
    origin: Literal["top_left", "bottom_left"] = "top_left"
    field_of_view: float  # vertical, degrees
    reflections: bool = False  # mirrors in the floor; they double the cost
    multisampling: Annotated[int, Field(ge=0)] = 0  # samples a pixel; 0: none

    @property
    def key(self) -> str:
        """Its name in observations and datasets, as robomimic has it."""
        return f"{self.name}_image"


class ObservationSpec(Frozen):
    """What the policy sees, in this order."""

    lowdim: tuple[LowDim, ...]
    cameras: tuple[Camera, ...] = ()
    history: Positive = 1  # To

    @property
    def state_size(self) -> int:
        """Do: numbers in one time step's state vector."""
        return sum(key.size for key in self.lowdim)


class ActionSpec(Frozen):
    """What one step of an action chunk means, for one arm or two (each arm: 6 pose deltas, then the gripper)."""

    arms: Literal[1, 2] = 1
    meaning: Literal["osc_pose_delta", "planar_delta"] = "osc_pose_delta"
    position_scale: float = 0.05  # m at an action of 1
    rotation_scale: float = 0.5  # rad at an action of 1, axis-angle in the world frame
    gripper: Literal["minus_open_plus_closed", "none"] = "minus_open_plus_closed"
    delta_reference: Literal["measured", "commanded"] = "measured"
    control_hz: Positive = 20
    limits: Literal["sim", "robot"] = "sim"

    @property
    def size(self) -> int:
        """Da: numbers in one step."""
        return 2 if self.meaning == "planar_delta" else 7 * self.arms


class SimulatorSpec(Frozen):
    """Where the observations came from."""

    name: str  # e.g. "robosuite"
    version: str  # e.g. "1.4.1, mujoco 3.3.7"
    environment: str  # e.g. "Lift"
    controller: str  # e.g. "OSC_POSE kp 150 damping 1 delta"


class Provenance(Frozen):
    """How this policy came to be."""

    stage: Literal["pretrain", "finetune"]
    dataset: str  # path as given
    dataset_digest: str  # sha256 of the dataset's bytes
    code_version: str
    seed: int
    simulator: SimulatorSpec
    metrics: dict[str, float] = Field(default_factory=dict)


class PolicySpec(Frozen):
    """The whole contract of one policy; lives as JSON inside `policy.safetensors`."""

    format: Literal[1] = FORMAT
    task: str
    observation: ObservationSpec
    action: ActionSpec
    horizon: Positive  # H
    executed: Positive  # Ta
    network: NetworkSpec
    sampler: AnySamplerSpec
    weights: Literal["ema", "raw"] = "ema"  # which set acts
    provenance: Provenance

    @model_validator(mode="after")
    def _executed_fits(self) -> PolicySpec:
        if self.executed > self.horizon:
            raise ValueError(f"executes {self.executed} steps of a chunk of only {self.horizon}")
        return self

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(H, Da)."""
        return self.horizon, self.action.size


def explain_validation(error: ValidationError) -> str:
    """A pydantic error as one sentence: each wrong field and what is wrong with it."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())


def parse_spec(text: str, where: str) -> PolicySpec:
    """Read a `PolicySpec` from JSON; a `UserError` names `where` and every wrong field."""
    try:
        return PolicySpec.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{where} holds no valid policy contract ({explain_validation(error)}); re-export it"
        ) from error


def differences(left: Frozen, right: Frozen, prefix: str = "") -> list[str]:
    """Every field in which two parts of a contract differ, as `name: left | right`."""
    a, b = left.model_dump(), right.model_dump()
    return [f"{prefix}{name}: {a[name]} | {b[name]}" for name in a if a[name] != b[name]]


def offered(observation: ObservationSpec, wanted: ObservationSpec) -> ObservationSpec:
    """`observation` reduced to the keys and cameras that `wanted` names, in its order: nobody has to look at all."""

    def chosen(have: tuple, want: tuple) -> tuple:
        by_name = {item.name: item for item in have}
        return tuple(by_name[item.name] for item in want if item.name in by_name)

    return observation.model_copy(
        update={
            "lowdim": chosen(observation.lowdim, wanted.lowdim),
            "cameras": chosen(observation.cameras, wanted.cameras),
        }
    )


def require_match(policy: PolicySpec, observation: ObservationSpec, action: ActionSpec, other: str) -> None:
    """Refuse, printing both sides, unless `other` (simulator, dataset, robot) offers what `policy` was trained on."""
    offer = offered(observation, policy.observation)
    wrong = differences(policy.observation, offer, "observation.") + differences(policy.action, action, "action.")
    if wrong:
        raise UserError(
            f"the policy for task '{policy.task}' and the {other} do not agree (policy | {other}): "
            + "; ".join(wrong)
            + f"; choose a {other} that matches the policy, or a policy trained for it"
        )
