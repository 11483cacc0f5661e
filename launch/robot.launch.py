"""Everything for a robot, with its drivers where `hosts:=` and `realsense:=` name them, or stand-ins (`standin:=true`).

A person arms it (`safety/arm`).
"""

from d2ppo_ros.launching import description


def generate_launch_description():
    return description("robot")
