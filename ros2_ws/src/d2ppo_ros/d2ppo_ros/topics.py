"""Names of the topics, what travels on each, and how reliably. All names are relative: a namespace holds a robot."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

STATE = "robot/state"  # StateVector: the contract's low-dimensional keys
ARM = "robot/arm{}"  # ArmState of arm 0, 1
CONTRACT = "robot/contract"  # String: JSON of `RobotContract`, latched
EPISODE = "episode"  # EpisodeState
OBJECT = "object/state"  # StateVector: what AprilTags say
REQUEST = "policy/request"
CHUNK = "policy/chunk"
POLICY = "policy/status"
POLICY_CONTRACT = "policy/contract"  # String: JSON of contract.PolicySpec, latched once it is active
REQUESTED = "command/requested"
SENT = "command/sent"
APPLIED = "command/applied"
REFERENCE = "command/reference"  # Command of kind POSE: what a driver has really given its controllers
SAFETY = "safety/state"
TRIAL = "trial/alive"  # std_msgs/String: name of the trial that is being run, 20 Hz, from who runs it
TRUTH = "sim/arm{}"  # ArmState: where the simulated arm really is, with none of the faults that were put in
ESTOP = "estop"  # std_msgs/Empty, from anybody
OPERATOR = "operator"  # std_msgs/Bool: the operator's switch, pressed, 10 Hz or more
SOURCE = "source/{}/image"  # Image: what a camera node is fed with
SOURCE_INFO = "source/{}/camera_info"
SOURCE_FRAME = "source/{}/frame"  # FrameInfo: the camera's own number and losses, from drivers that know them
SOURCE_SETUP = "source/{}/setup"  # String: JSON of what the driver has set and read back, latched
IMAGE = "camera/{}/image"  # Image: as the policy gets it
RAW = "camera/{}/raw"
FRAME = "camera/{}/frame"  # FrameInfo
CAMERA_INFO = "camera/{}/camera_info"
CAMERA = "camera/{}/contract"  # String: JSON of contract.Camera, latched
SETUP = "camera/{}/setup"  # String: JSON of what forms its pictures: the driver's part, calibration, crop; latched
STANDIN_PICTURE = "standin/{}/picture"  # Image: what a software camera shows

START = "executor/start"  # StartTrial
STOP = "executor/stop"  # Trigger
RESET = "sim/reset"  # StartTrial
RECORD = "recorder/start"  # StartRecording
RECORD_END = "recorder/stop"  # Trigger
ARM_SAFETY = "safety/arm"  # Trigger
DISARM = "safety/disarm"
REARM = "safety/rearm"
ESTOP_CALL = "safety/stop"
RECOVER = "arm/recover"  # Trigger: the robot's own errors, after a person has looked
POLICY_PARAMETERS = "policy/get_parameters"
RUN_TRIAL = "run_trial"  # action


def _profile(depth: int, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


EVERY = _profile(20)  # commands, states: none may be missed
NEWEST = _profile(2)  # images: an old one is of no use
SENSOR = _profile(2, reliable=False)  # other people's cameras: fits both kinds of publishers
LATCHED = _profile(1, latched=True)
REPORT = _profile(10, latched=True)  # how something stands, again and again: who comes late hears it at once
