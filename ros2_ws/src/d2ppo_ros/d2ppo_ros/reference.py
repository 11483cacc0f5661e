"""Every parameter of every node as Markdown: `python -m d2ppo_ros.reference > docs/ros_parameters.md`."""

from __future__ import annotations

from collections.abc import Mapping

from .executor.settings import ExecutorSettings
from .nodes.camera import CameraSettings
from .nodes.policy import PolicySettings
from .nodes.run_trials import RunSettings
from .nodes.sim import SimSettings
from .nodes.sim_faults import Faults
from .nodes.standin_cameras import StandinCamerasSettings
from .nodes.standin_stage import StageSettings
from .nodes.trial import TrialSettings
from .objects.settings import ObjectPoseSettings
from .parameters import table
from .realsense.settings import RealsenseSettings
from .recording.recorder import RecorderSettings
from .robot.settings import ArmSettings
from .safety.settings import SafetySettings, settings_class
from .scenarios import SCENARIOS
from .standin.settings import StandInSettings

NODES: Mapping[str, tuple[type, ...]] = {  # by module
    "camera": (CameraSettings,),
    "realsense": (RealsenseSettings,),
    "standin_cameras": (StandinCamerasSettings,),
    "arm": (ArmSettings,),
    "standin_arm": (StandInSettings,),
    "standin_stage": (StageSettings,),
    "policy": (PolicySettings,),
    "executor": (ExecutorSettings,),
    "safety": (SafetySettings,),
    "recorder": (RecorderSettings,),
    "object_pose": (ObjectPoseSettings,),
    "sim": (SimSettings, Faults),
    "trial": (TrialSettings,),
    "run_trials": (RunSettings,),
}
EXTRA = {"safety": {"lockstep"}}  # parameters that a node reads to choose its settings
HEAD = """# ROS parameters

Made by `python -m d2ppo_ros.reference`; a test keeps it so. They are read once, when a node starts; those under
"sim, changeable" may be set while it runs. Set them in a file of your own (`params=FILE`, `params:=FILE`) over those in
`launch/params`. What `d2ppo up` and the launch files take is below the nodes."""


def markdown() -> str:
    """The whole page."""
    parts = [HEAD]
    for node, classes in NODES.items():
        for settings in classes:
            title = f"`{node}`" + (", changeable" if settings is Faults else "")
            parts.append(f"## {title}\n\n" + (_safety() if node == "safety" else _rows(table(settings))))
    for scenario, options in SCENARIOS.items():
        title = f"## `d2ppo up {scenario}`, `{scenario}.launch.py`"
        parts.append(f"{title}\n\n{options.__doc__}\n\n" + _rows(table(options)))
    return "\n\n".join(parts) + "\n"


def _rows(rows: list[tuple[str, str, str, str]]) -> str:
    lines = [f"| `{name}` | {_cell(default)} | {_cell(limits)} | {_cell(why)} |" for name, default, limits, why in rows]
    return "\n".join(["| name | default | allowed | what it is |", "|---|---|---|---|", *lines])


def _safety() -> str:
    """One row a parameter, with the defaults of each profile."""
    robot, sim, lockstep = (table(settings_class(*chosen)) for chosen in (("robot",), ("sim",), ("sim", True)))
    lines = [
        f"| `{name}` | {_cell(default)} | {_cell(simulated[1])} | {_cell(still[1])} | {_cell(limits)} | {_cell(why)} |"
        for (name, default, limits, why), simulated, still in zip(robot, sim, lockstep, strict=True)
    ]
    head = "| name | profile `robot` | `sim` | `sim` in lockstep | allowed | what it is |"
    return "\n".join([
        "`lockstep` (default false) says that time is simulated. 0 switches a check off, which profile `robot` mostly "
        "refuses; the upper end of each range is a ceiling that no file gets past.\n",
        head, "|---|---|---|---|---|---|", *lines,
    ])  # fmt: skip


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    print(markdown(), end="")
