"""Parameters of the executor, and which of its modes a policy allows."""

from __future__ import annotations

from dataclasses import dataclass

from d2ppo_core.contract import ActionSpec
from d2ppo_core.errors import UserError

from ..parameters import parameter
from ..records import SECOND

MODES = ("receding", "async", "ensemble", "rtc")


@dataclass(frozen=True)
class ExecutorSettings:
    """How chunks are executed."""

    mode: str = parameter("receding", "receding executes as in training; the others never stop to think", choices=MODES)
    lockstep: bool = parameter(False, "one tick for each robot state, and simulated time waits for the policy")
    lockstep_latency: float = parameter(
        0.0, "age of a chunk before it is used in lockstep, as if the policy took that long", unit="s", low=0, high=10
    )
    rate: float = parameter(100.0, "of ticks in real time, each one command", unit="Hz", low=10, high=1000)
    starve_after: float = parameter(0.5, "with no step left for so long the arm is held", unit="s", low=0, high=10)
    trial_lease: float = parameter(
        0.3, "silence of who runs the trial until it is stopped; 0: nobody watches it. Not in lockstep", unit="s",
        low=0, high=5,
    )  # fmt: skip
    request_timeout: float = parameter(
        0.4, "an unanswered request is repeated after this: twice before safety calls the arm starved", unit="s",
        low=0.05, high=60,
    )  # fmt: skip
    ensemble_decay: float = parameter(
        0.01, "m of the weights exp(-m i), i = 0 the oldest chunk; higher: chunks replace one another slower", low=0
    )
    latency_window: int = parameter(50, "answers that the latency is estimated from", low=1, high=10_000)
    latency_quantile: float = parameter(
        0.95, "of the latencies in the window; rtc freezes the steps that pass in it", low=0, high=1
    )
    latency_initial: float = parameter(0.1, "latency until one has been measured", unit="s", low=0, high=10)
    action_latency: float = parameter(
        0.0, "from a command to the arm's motion (`robot_action` in latency.yaml): poses are sent so much ahead",
        unit="s", low=0, high=0.5,
    )  # fmt: skip
    gripper_close: float = parameter(0.2, "the gripper closes where the action is above this", low=-1, high=1)
    gripper_open: float = parameter(-0.2, "the gripper opens where the action is below this", low=-1, high=1)
    gripper_dwell: float = parameter(
        0.5, "least time between two changes: a Franka hand takes that long for one", unit="s", low=0, high=10
    )
    reanchor_distance: float = parameter(
        0.03, "farther from the measured position the reference starts anew there", unit="m", low=0.001, high=1
    )
    reanchor_angle: float = parameter(
        0.2, "turned farther from the measured rotation the reference starts anew there", unit="rad", low=0.01, high=3
    )
    smoothing: float = parameter(
        0.0, "time constant of a low-pass on the pose deltas, which delays by as much; 0: off", unit="s", low=0, high=1
    )

    @property
    def poses(self) -> bool:
        """Whether the commands are absolute poses (else the policy's own deltas)."""
        return self.mode != "receding"


def check(settings: ExecutorSettings, action: ActionSpec, horizon: int, executed: int) -> None:
    """Refuse what cannot work, before anything moves."""
    if not 1 <= executed <= horizon:
        raise UserError(f"executing {executed} steps of a chunk of {horizon} is impossible; take another policy")
    if settings.gripper_open > settings.gripper_close:
        raise UserError(
            f"executor: gripper_open={settings.gripper_open} is above gripper_close={settings.gripper_close}; "
            "it must not be"
        )
    if not settings.lockstep and settings.rate < action.control_hz:
        raise UserError(
            f"executor: rate={settings.rate} Hz is below the policy's {action.control_hz} Hz; set rate to at least that"
        )
    if settings.lockstep and settings.action_latency:
        raise UserError("executor: action_latency is for real time; in lockstep the robot acts at once; leave it out")
    if not settings.poses:
        return
    if horizon <= executed:
        raise UserError(
            f"executor mode '{settings.mode}' needs a policy that predicts more steps than it executes, and this one "
            f"predicts {horizon} and executes {executed}; use mode 'receding' or a policy with a longer horizon"
        )
    if action.meaning != "osc_pose_delta":
        raise UserError(
            f"executor mode '{settings.mode}' makes poses of pose deltas, and this policy's actions are "
            f"'{action.meaning}'; use mode 'receding'"
        )


def nanoseconds(seconds: float) -> int:
    """Seconds as the int nanoseconds that times are kept in."""
    return round(seconds * SECOND)
