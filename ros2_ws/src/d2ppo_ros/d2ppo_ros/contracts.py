"""Each side's part of the contract, as it is latched on a topic, and their comparison before anything moves."""

from __future__ import annotations

from pydantic import ValidationError

from d2ppo_core.contract import (
    ActionSpec,
    Camera,
    LowDim,
    ObservationSpec,
    PolicySpec,
    explain_validation,
    require_match,
)
from d2ppo_core.errors import UserError
from d2ppo_core.frozen import Frozen


class RobotContract(Frozen):
    """What a robot (or the simulator) measures and does."""

    name: str
    lowdim: tuple[LowDim, ...]
    action: ActionSpec


def parse(kind: type[Frozen], text: str, where: str) -> Frozen:
    """A latched JSON text as its contract; `where` names the topic."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{where} holds no valid contract ({explain_validation(error)}); restart its node") from error


def require_agreement(
    policy: PolicySpec, robot: RobotContract, cameras: dict[str, Camera], any_limits: bool = False
) -> None:
    """Refuse, printing both sides, unless robot and cameras offer what the policy was trained on.

    Args:
        cameras: by name, as their nodes state them.
        any_limits: let a policy run under another limits profile than it was trained under.
    """
    missing = [camera.name for camera in policy.observation.cameras if camera.name not in cameras]
    if missing:
        raise UserError(
            f"the policy for task '{policy.task}' looks through {', '.join(missing)}, and no camera node says that it "
            f"delivers that; there are {', '.join(sorted(cameras)) or 'none'}"
        )
    offer = ObservationSpec(
        lowdim=robot.lowdim, cameras=tuple(cameras.values()), history=policy.observation.history
    )
    limits = {"limits": policy.action.limits} if any_limits else {}
    require_match(policy, offer, robot.action.model_copy(update=limits), f"robot '{robot.name}'")
