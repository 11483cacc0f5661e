"""What each sub-command of `d2ppo calibrate` does; each is named as the sub-command is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError
from d2ppo_core.files import write_json, write_text

from .board import BoardSpec, write_board
from .calibration import Calibration, calibrate, read_calibration, write_calibration
from .camera import Intrinsics
from .checks import Check, table
from .dataset import FILE, Dataset
from .files import read, read_picture, read_values, write_picture
from .poses import Placed, placed


def board(options: argparse.Namespace) -> int:
    spec = _board_of(options)
    numbers = options.out.with_suffix(".json")
    write_board(options.out, spec, options.paper)
    write_json(numbers, spec.model_dump(mode="json"))
    _answer(options, {"board": spec.model_dump(mode="json"), "files": [str(options.out), str(numbers)]}, (
        f"{options.out}: print it at 100 %, both scales must be 100.0 mm, then measure a row of squares\n"
        f"{numbers}: its numbers, for --board"
    ))  # fmt: skip
    return 0


def capture(options: argparse.Namespace) -> int:
    from .taking import film, take

    tool = {"flange_effector": read(Placed, options.tool)} if options.tool else {}
    dataset = Dataset(
        camera=options.camera, setup=options.setup, board=_board_of(options), base_frame=options.base_frame,
        flange_frame=options.flange_frame, **tool,
    )  # fmt: skip

    def say(text: str) -> None:
        if not options.json:
            print(text, flush=True)

    if options.moving:
        done = film(options.folder, dataset, options.source, options.moving, say)
    else:
        done = take(options.folder, dataset, options.source, options.poses, options.views, say)
    _answer(options, done, f"{options.folder}: {done['advice']}")
    return 0


def synthetic(options: argparse.Namespace) -> int:
    from .synthetic import record

    if (options.folder / FILE).exists():
        raise UserError(f"{options.folder} holds a recording; choose a new folder")
    truth = record(options.folder, options.setup, options.views, _board_of(options), options.seed)
    known = {"intrinsics": truth.sees.model_dump(mode="json"), "pose": placed(truth.camera).model_dump(mode="json"),
             "board_pose": placed(truth.board).model_dump(mode="json")}  # fmt: skip
    write_json(options.folder / "truth.json", known)
    _answer(options, known, f"{options.folder}: {options.views} views; the truth is in truth.json")
    return 0


def intrinsics(options: argparse.Namespace) -> int:
    return _calibrated(
        options, calibrate(options.folder, rational=options.rational, seed=options.seed, camera_only=True)
    )


def solve(options: argparse.Namespace) -> int:
    sees = known_camera(options.intrinsics) if options.intrinsics else None
    return _calibrated(options, calibrate(options.folder, sees, options.rational, options.seed))


def _calibrated(options: argparse.Namespace, found: Calibration) -> int:
    found = write_calibration(options.out, found)
    matrix = found.intrinsics.matrix
    lines = [
        f"{found.camera}, {found.setup}: {len(found.views)} views"
        + (f", left out {', '.join(found.rejected)}" if found.rejected else ""),
        f"fx {matrix[0]:.2f} fy {matrix[4]:.2f} cx {matrix[2]:.2f} cy {matrix[5]:.2f} px, {found.intrinsics.model} "
        + " ".join(f"{v:.4f}" for v in found.intrinsics.distortion),
    ]
    if found.pose is not None:
        at, turn = (" ".join(f"{v:.5f}" for v in numbers) for numbers in (found.pose.position, found.pose.quaternion))
        lines.append(f"in {found.parent_frame}: position {at} m, quaternion xyzw {turn}")
        away = (f"{name} {1000 * m:.2f} mm {deg:.3f} deg" for name, (m, deg) in found.solvers.items())
        lines.append(f"from it: {', '.join(away)}")
    lines += [
        table(found.checks),
        f"{options.out}: {'accepted' if found.accepted else 'NOT accepted'}, digest {found.digest}",
    ]
    _answer(options, found.model_dump(mode="json"), "\n".join(lines))
    return 0 if found.accepted else 1


def validate(options: argparse.Namespace) -> int:
    from .validate import validate as check

    checks = check(read_calibration(options.calibration), options.folder, options.touches or "", options.run_dir or "")
    return _judged(options, checks)


def diff(options: argparse.Namespace) -> int:
    from .compare import compare

    return _judged(options, compare(read_calibration(options.old), read_calibration(options.new)))


def _judged(options: argparse.Namespace, checks: Sequence[Check]) -> int:
    listed = [check.model_dump(mode="json") | {"grade": check.grade} for check in checks]
    _answer(options, listed, table(checks))
    return int(any(check.grade == "BAD" for check in checks))


def export(options: argparse.Namespace) -> int:
    from .export import export as write_all

    paths = write_all(read_calibration(options.calibration), options.run_dir, options.anyway)
    _answer(options, [str(path) for path in paths], "\n".join(map(str, paths)))
    return 0


def latency(options: argparse.Namespace) -> int:
    from .latency import Pair, Record, Signal, estimate, named_parameters, signal_of_pictures

    pairs = list(read(Record, options.signals).pairs) if options.signals else []
    if bool(options.pictures) != bool(options.states):
        raise UserError("--pictures and --states belong together; give both, or neither")
    if options.pictures:
        states, seen = read(Signal, options.states), signal_of_pictures(options.pictures)
        pairs.append(Pair(name="camera", reference=states, delayed=seen))
    if not pairs:
        raise UserError("there is nothing to measure; give a file of signals, or --pictures and --states")
    low, high = options.range
    if not low < high:
        raise UserError(f"--range {low:g} {high:g} is empty; give the lower end first")
    found = {pair.name: estimate(pair.reference, pair.delayed, low, high, pair.name) for pair in pairs}
    values = merged(options.out, named_parameters(found, options.control_hz))
    write_text(options.out, _yaml(values))
    if options.ros:
        write_text(options.ros, _yaml({"/**/sim": {"ros__parameters": values["simulator"]}}))
    lines = [
        f"{name}: {milli[0]:.1f} +- {milli[1]:.1f} ms (R^2 {one.explained:.3f}, {one.samples} samples)"
        for name, one in found.items()
        for milli in [(1000 * one.seconds, 1000 * one.spread)]
    ]
    _answer(options, values, "\n".join([*lines, str(options.out)]))
    return 0


def merged(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """New latencies over those that a file has from before."""
    old = read_values(path) if path.exists() else {}
    if not isinstance(old, dict) or not all(isinstance(part, dict) for part in old.values()):
        raise UserError(f"{path} is no file of latencies; choose another --out")
    most = max(values["randomise"]["most"], old.get("randomise", {}).get("most", 0))
    return {part: {**old.get(part, {}), **new} for part, new in values.items()} | {
        "randomise": {"least": 0, "most": most}
    }


def align(options: argparse.Namespace) -> int:
    import cv2

    from d2ppo_core.lens import crop_field_of_view, crop_for

    from . import align as maths

    calibration, picture = read_calibration(options.calibration), read_picture(options.picture)
    sees, camera = calibration.intrinsics, policy_camera(options)
    if picture.shape[1::-1] != sees.size:
        raise UserError(
            f"{options.picture} is {picture.shape[1]} x {picture.shape[0]}, the camera was calibrated at "
            f"{sees.width} x {sees.height}; take a picture of that size"
        )
    crop = crop_for(sees, camera)
    fovy, checks = crop_field_of_view(sees, crop), maths.view_checks(sees, crop, camera)
    upright = camera.model_copy(update={"colour": "bgr", "origin": "top_left"})
    real = maths.policy_view(picture, crop, upright)
    write_picture(options.run_dir / "policy_view.png", real)
    report: dict[str, Any] = {
        "calibration": calibration.digest, "camera": camera.name, "crop": vars(crop), "field_of_view": fovy,
        "parent_frame": calibration.parent_frame, "files": [str(options.run_dir / "policy_view.png")],
    }  # fmt: skip
    if calibration.pose is not None:
        report["mujoco"] = maths.mujoco_camera(calibration.pose.matrix, camera.name, fovy)
    if options.scene:
        simulated, more = _simulated(options, calibration, camera, fovy)
        checks += more
        both = maths.comparison(real, cv2.cvtColor(simulated, cv2.COLOR_RGB2BGR))
        write_picture(options.run_dir / "overlay.png", both)
        report["files"].append(str(options.run_dir / "overlay.png"))
    report["checks"] = [check.model_dump(mode="json") | {"grade": check.grade} for check in checks]
    write_json(options.run_dir / "alignment.json", report)
    lines = [
        f"crop before resizing: x {crop.x} y {crop.y} width {crop.width} height {crop.height}, {fovy:.2f} degrees high"
    ]
    if fovy < camera.field_of_view - 0.5:
        lines.append(
            f"the camera sees only {fovy:.1f} of the policy's {camera.field_of_view:g} degrees: take a wider lens, or "
            f"train with field_of_view: {fovy:.1f}"
        )
    lines += [f"in {calibration.parent_frame}: {report['mujoco']['mjcf']}"] if "mujoco" in report else []
    _answer(options, report, "\n".join([*lines, table(checks), *report["files"]]))
    return int(any(check.grade == "BAD" for check in checks))


def _simulated(
    options: argparse.Namespace, calibration: Calibration, camera: Camera, fovy: float
) -> tuple[Any, list[Check]]:
    """The scene (H, W, 3) RGB from the calibrated camera, and how far that is from the model's own."""
    from .align import difference
    from .scene import Scene, base_flange_of

    if calibration.pose is None:
        raise UserError(
            "only the lens of this camera was calibrated; run `d2ppo calibrate solve` to place it in a scene"
        )
    scene = Scene(options.scene)
    scene.set_joints(options.joint_prefix, options.joints)
    for joint, *position in options.place:
        scene.place(joint, options.base_body, numbers(position, "--place"))
    parent = scene.body(options.base_body)
    if calibration.setup == "eye_in_hand":
        parent = parent @ base_flange_of(scene, options.base_body, options.link_body, options.flange_offset)
    world_camera, own = parent @ calibration.pose.matrix, scene.camera(camera.name)
    checks = difference(world_camera, own[0], fovy, own[1]) if own else []
    return scene.picture(world_camera, fovy, camera.height, camera.width), checks


def numbers(words: Sequence[str], option: str) -> list[float]:
    """Words of the command line as numbers."""
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"{option} {' '.join(words)}: these must be numbers ({error})") from error


def policy_camera(options: argparse.Namespace) -> Camera:
    """The camera of the contract that is asked for."""
    from d2ppo_core.checkpoint import read_policy
    from d2ppo_core.tasks import load_task, observation_spec

    spec = (
        read_policy(options.checkpoint)[0].observation
        if options.checkpoint
        else observation_spec(load_task(options.task))
    )
    cameras = {camera.name: camera for camera in spec.cameras}
    name = options.camera or (next(iter(cameras)) if len(cameras) == 1 else "")
    if name not in cameras:
        raise UserError(
            f"the policy has no camera '{name}'; --camera must be one of {', '.join(cameras)}" if cameras else
            "this policy looks at no camera; choose a task whose name ends in _image, or its checkpoint"
        )  # fmt: skip
    return cameras[name]


def known_camera(path: Path) -> Intrinsics:
    """From a calibration (.json) or a camera_info file."""
    from .export import read_camera_info

    return read_calibration(path).intrinsics if path.suffix == ".json" else read_camera_info(path)


def _board_of(options: argparse.Namespace) -> BoardSpec:
    """The board's file, if given, with what the other options change; they are in mm."""
    from d2ppo_core.tasks import validated

    values = read(BoardSpec, options.board).model_dump() if options.board else BoardSpec().model_dump()
    for name in ("columns", "rows", "square", "marker", "dictionary"):
        given = getattr(options, name)
        if given is not None:
            values[name] = given / 1000 if name in ("square", "marker") else given
    return validated(BoardSpec, values | {"legacy": options.legacy or values["legacy"]}, "the board")


def _answer(options: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value, indent=2) if options.json else text)


def _yaml(values: Any) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False)
