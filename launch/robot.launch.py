"""Everything for a robot whose driver, and whose cameras' drivers, run already; a person arms it (`safety/arm`)."""

from d2ppo_ros.launching import description


def generate_launch_description():
    return description("robot")
