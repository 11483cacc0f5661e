"""A calibration in the forms that other programs read: ROS, easy_handeye2, URDF, and this product's own nodes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError
from d2ppo_core.files import write_text

from .calibration import Calibration
from .camera import Intrinsics
from .files import read_values
from .poses import Placed


def export(calibration: Calibration, folder: str | Path, anyway: bool = False) -> list[Path]:
    """Write every form that applies into a folder; the paths.

    Raises:
        UserError: a check is BAD, and `anyway` is not set.
    """
    if not calibration.accepted and not anyway:
        bad = [check.name for check in calibration.checks if check.grade == "BAD"]
        raise UserError(f"this calibration is not accepted ({', '.join(bad)}); record better views, or add --anyway")
    folder, name = Path(folder), calibration.camera
    texts = {f"{name}_camera_info.yaml": _yaml(camera_info(calibration.intrinsics, name))}
    if calibration.pose is not None:
        texts |= {
            f"{name}.calib": _yaml(easy_handeye(calibration)),
            f"{name}_static_transform.sh": f"exec {static_transform(calibration)}\n",
            f"{name}_joint.urdf.xml": urdf_joint(calibration),
        }
    if calibration.setup == "eye_to_hand":
        texts[f"{name}_cameras.yaml"] = _yaml(cameras_file(calibration))
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def camera_info(sees: Intrinsics, name: str) -> dict[str, Any]:
    """ROS's camera_calibration file."""
    k = list(sees.matrix)
    projection = [*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0]
    return {
        "image_width": sees.width, "image_height": sees.height, "camera_name": name,
        "camera_matrix": _matrix(3, 3, k), "distortion_model": sees.model,
        "distortion_coefficients": _matrix(1, len(sees.distortion), list(sees.distortion)),
        "rectification_matrix": _matrix(3, 3, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
        "projection_matrix": _matrix(3, 4, projection),
    }  # fmt: skip


def read_camera_info(path: str | Path) -> Intrinsics:
    """A camera from a file as `camera_info` writes it; RealSense's factory values come like this, too."""
    values = read_values(path)
    try:
        if values["distortion_model"] not in ("plumb_bob", "rational_polynomial"):
            raise ValueError(f"distortion model '{values['distortion_model']}', which is neither of "
                             "plumb_bob and rational_polynomial")  # fmt: skip
        return Intrinsics(
            width=values["image_width"], height=values["image_height"],
            matrix=tuple(float(v) for v in values["camera_matrix"]["data"]),
            distortion=tuple(float(v) for v in values["distortion_coefficients"]["data"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no camera_info file ({' '.join(str(error).split())}); export one from a calibration, or "
            "from ROS's camera_calibration"
        ) from error


def easy_handeye(calibration: Calibration) -> dict[str, Any]:
    """What easy_handeye2 publishes when it lies in ~/.ros2/easy_handeye2/calibrations as NAME.calib."""
    at, in_hand = _placed(calibration), calibration.setup == "eye_in_hand"
    return {
        "parameters": {
            "name": calibration.camera,
            "calibration_type": "eye_in_hand" if in_hand else "eye_on_base",
            "robot_base_frame": calibration.base_frame,
            "robot_effector_frame": calibration.parent_frame if in_hand else calibration.flange_frame,
            "tracking_base_frame": calibration.camera_frame,
            "tracking_marker_frame": "charuco_board",
            "freehand_robot_movement": True,
            "move_group_namespace": "/",
            "move_group": "manipulator",
        },
        "transform": {
            "translation": dict(zip("xyz", at.position, strict=True)),
            "rotation": dict(zip("xyzw", at.quaternion, strict=True)),
        },
    }


def static_transform(calibration: Calibration) -> str:
    """The command that publishes the camera's place to tf2."""
    at = _placed(calibration)
    numbers = [f"--{axis} {value:.9f}" for axis, value in zip("xyz", at.position, strict=True)]
    numbers += [f"--q{axis} {value:.9f}" for axis, value in zip("xyzw", at.quaternion, strict=True)]
    frames = (
        f"--frame-id {shlex.quote(calibration.parent_frame)} --child-frame-id {shlex.quote(calibration.camera_frame)}"
    )
    return f"ros2 run tf2_ros static_transform_publisher {' '.join(numbers)} {frames}"


def urdf_joint(calibration: Calibration) -> str:
    """A fixed joint and its link, to be put into a robot's URDF."""
    at = _placed(calibration)
    roll_pitch_yaw = Rotation.from_quat(at.quaternion).as_euler("xyz")
    numbers = (" ".join(f"{v:.9f}" for v in three) for three in (at.position, roll_pitch_yaw))
    xyz, rpy = numbers
    return (
        f'<robot name="{calibration.camera}">\n'
        f'  <link name="{calibration.camera_frame}"/>\n'
        f'  <joint name="{calibration.camera_frame}_joint" type="fixed">\n'
        f'    <parent link="{calibration.parent_frame}"/>\n'
        f'    <child link="{calibration.camera_frame}"/>\n'
        f'    <origin xyz="{xyz}" rpy="{rpy}"/>\n'
        "  </joint>\n</robot>\n"
    )


def cameras_file(calibration: Calibration) -> dict[str, Any]:
    """The camera as the object pose node's file of cameras has it, in the frame of the robot's base."""
    at, sees = _placed(calibration), calibration.intrinsics
    seen = {
        "width": sees.width,
        "height": sees.height,
        "matrix": list(sees.matrix),
        "distortion": list(sees.distortion),
    }
    return {"cameras": [{"name": calibration.camera, "position": list(at.position), "quaternion": list(at.quaternion),
                         "intrinsics": seen}]}  # fmt: skip


def _placed(calibration: Calibration) -> Placed:
    if calibration.pose is None:
        raise UserError(
            f"camera '{calibration.camera}' has no place: only its lens was calibrated; run `d2ppo calibrate solve`"
        )
    return calibration.pose


def _matrix(rows: int, columns: int, data: list[float]) -> dict[str, Any]:
    return {"rows": rows, "cols": columns, "data": data}


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
