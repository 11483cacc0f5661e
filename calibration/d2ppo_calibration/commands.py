"""`d2ppo calibrate`: cameras, hand-eye, latencies, and how all that fits the simulation. No ROS is needed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from d2ppo_core.bench.machine import Parser
from d2ppo_core.cli import Command
from d2ppo_core.errors import UserError

SETUPS = ("eye_in_hand", "eye_to_hand", "camera_only")
EPILOG = """in this order:
  d2ppo calibrate board    board.pdf
  d2ppo calibrate capture  rec/wrist --source pictures --poses poses.json --camera wrist --setup eye_in_hand
  d2ppo calibrate capture  rec/wrist --source ros:wrist --camera wrist --setup eye_in_hand
  d2ppo calibrate solve    rec/wrist --out wrist.json
  d2ppo calibrate validate wrist.json rec/other --run-dir check
  d2ppo calibrate export   wrist.json --run-dir exported
  d2ppo calibrate diff     wrist-old.json wrist.json
  d2ppo calibrate latency  signals.json --out latency.yaml
  d2ppo calibrate align    wrist.json picture.png --task lift_image --camera robot0_eye_in_hand --run-dir aligned
to try all this without hardware:
  d2ppo calibrate synthetic rec/wrist --setup eye_in_hand
"""


def run(arguments: list[str]) -> int:
    """Run one of the sub-commands; the exit code (1: a number does not keep its limit)."""
    options = _parser().parse_args(arguments)
    try:
        from . import work
    except ImportError as error:
        raise UserError(
            f"`d2ppo calibrate` needs a part that is not installed ({error}); run `make setup`, or install the "
            "'calibration' extra"
        ) from error
    return getattr(work, options.work)(options)


Add = Callable[[str, str], argparse.ArgumentParser]


def _parser() -> Parser:
    parser = Parser(
        prog="d2ppo calibrate", description="Calibrate cameras and latencies, and align them with the simulation.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
        command.set_defaults(work=name)
        return command

    _recording(add)
    _solving(add)
    _using(add)
    return parser


def _recording(add: Add) -> None:
    command = add("board", "a ChArUco board to print, PDF or PNG, with scales to check by a ruler")
    command.add_argument("out", type=Path, help="the .pdf or .png; its numbers are put beside it as .json")
    command.add_argument("--paper", default="a4", help="a4 (default), a3 or letter")
    _board(command)
    command = add("capture", "take good views of the board into a recording, with advice what is missing")
    command.add_argument("folder", type=Path, help="the recording; one that is there goes on")
    command.add_argument(
        "--source", required=True,
        help="a folder of pictures, a video file, a video device's number, or ros:CAMERA: a driver's pictures with the "
        "arm's joints (ros:CAMERA:1: the second arm's)",
    )  # fmt: skip
    command.add_argument(
        "--poses", type=Path, help="JSON {picture: {position, quaternion, speed, joints}} of the effector"
    )
    command.add_argument("--camera", required=True, help="its name, e.g. its serial number")
    command.add_argument(
        "--setup", choices=SETUPS, default="camera_only", help="where the camera is (default camera_only)"
    )
    command.add_argument("--views", type=int, default=25, help="stop after so many (default 25)")
    command.add_argument(
        "--moving", type=float, default=0.0, metavar="SECONDS",
        help="instead: keep every picture with its time for so long, and the arm's positions as states.json (latency)",
    )  # fmt: skip
    command.add_argument("--tool", type=Path, help="JSON {position, quaternion}: the effector in the flange (F_T_EE)")
    command.add_argument("--base-frame", default="panda_link0", help="tf2's name of the robot's base")
    command.add_argument("--flange-frame", default="panda_link8", help="tf2's name of the flange")
    _board(command)
    command = add("synthetic", "a rendered recording with known truth, to try the rest without hardware")
    command.add_argument("folder", type=Path, help="a new folder")
    command.add_argument("--setup", choices=SETUPS, default="eye_in_hand")
    command.add_argument("--views", type=int, default=20)
    command.add_argument("--seed", type=int, default=0)
    _board(command)


def _board(command: argparse.ArgumentParser) -> None:
    command.add_argument("--board", type=Path, help="its numbers as JSON, written by `d2ppo calibrate board`")
    command.add_argument("--columns", type=int, help="squares from left to right (default 9)")
    command.add_argument("--rows", type=int, help="squares from top to bottom (default 6)")
    command.add_argument("--square", type=float, help="edge of a square in mm, as measured on the print (default 30)")
    command.add_argument("--marker", type=float, help="edge of a marker in mm (default 22)")
    command.add_argument("--dictionary", help="OpenCV's name (default DICT_5X5_250)")
    command.add_argument("--legacy", action="store_true", help="a board printed by OpenCV before 4.6")


def _solving(add: Add) -> None:
    for name, about in (
        ("intrinsics", "camera matrix and lens from a recording"),
        ("solve", "camera matrix, lens and the camera's place (eye in hand, eye to hand) from a recording"),
    ):
        command = add(name, about)
        command.add_argument("folder", type=Path, help="the recording")
        command.add_argument("--out", type=Path, required=True, help="the calibration, JSON")
        command.add_argument("--rational", action="store_true", help="eight lens coefficients, for wide angles")
        command.add_argument("--seed", type=int, default=0, help="which views are held out (default 0)")
        if name == "solve":
            command.add_argument("--intrinsics", type=Path, help="a known camera: a calibration, or a camera_info YAML")
    command = add("validate", "a calibration against another recording and touched points; exit code 1 if it fails")
    command.add_argument("calibration", type=Path)
    command.add_argument("folder", type=Path, help="a recording that it was not computed from")
    command.add_argument("--touches", type=Path, help="JSON {touches: [{image, corner, point}]} of the finger tip")
    command.add_argument("--run-dir", type=Path, default="", help="put pictures with corners, seen and expected, here")
    command = add("diff", "what changed between two calibrations; exit code 1 if it matters")
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)


def _using(add: Add) -> None:
    command = add("export", "camera_info, easy_handeye2, static transform, URDF, and the nodes' file of cameras")
    command.add_argument("calibration", type=Path)
    command.add_argument("--run-dir", type=Path, required=True, help="the folder to write to")
    command.add_argument("--anyway", action="store_true", help="though a check is BAD")
    command = add("latency", "latencies from recorded signals, as named parameters")
    command.add_argument("signals", type=Path, nargs="?", help="JSON {pairs: [{name, reference, delayed}]}")
    command.add_argument("--pictures", type=Path, help="or a recording of a moving board with times, for the camera's")
    command.add_argument("--states", type=Path, help="with it JSON {time, value}: the arm's position over time")
    command.add_argument("--out", type=Path, required=True, help="the parameters, YAML; others in it are kept")
    command.add_argument(
        "--range", type=float, nargs=2, default=(-0.1, 0.5), metavar=("LOW", "HIGH"), help="s (-0.1 0.5)"
    )
    command.add_argument("--control-hz", type=float, default=20.0, help="control steps a second of the policy (20)")
    command.add_argument("--ros", type=Path, help="also a parameter file for the simulator's node")
    command = add("align", "crop to the policy's field of view, the simulator's camera, and both pictures overlaid")
    command.add_argument("calibration", type=Path)
    command.add_argument("picture", type=Path, help="a picture of the calibrated camera")
    of = command.add_mutually_exclusive_group(required=True)
    of.add_argument("--task", help="whose contract has the policy's camera, e.g. lift_image")
    of.add_argument("--checkpoint", type=Path, help="or a policy's file")
    command.add_argument("--camera", help="the policy's camera (default: its only one)")
    command.add_argument("--scene", type=Path, help="the simulated scene: a `d2ppo bundle` file, .xml or .mjb")
    command.add_argument("--joints", type=float, nargs="+", default=[], help="the arm's joints in the picture, rad")
    command.add_argument(
        "--place", nargs=4, action="append", default=[], metavar=("JOINT", "X", "Y", "Z"),
        help="put the object on this free joint there, m in the robot's base; may be given several times",
    )  # fmt: skip
    command.add_argument("--joint-prefix", default="robot0_joint")
    command.add_argument("--base-body", default="robot0_base", help="the robot's base in the scene")
    command.add_argument("--link-body", default="robot0_link7", help="the last link in the scene")
    command.add_argument(
        "--flange-offset", type=float, default=0.107, help="m from there along z to the flange (0.107)"
    )
    command.add_argument("--run-dir", type=Path, required=True, help="the folder to write to")


CALIBRATE = Command("calibrate cameras, hand-eye and latencies; align them with the simulation", run)
