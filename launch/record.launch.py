"""The recorder alone, beside a system that runs: trials whose goal says `record`, or `recorder/start`, are recorded."""

from d2ppo_ros.launching import description


def generate_launch_description():
    return description("record")
