"""Everything against the simulator: `ros2 launch d2ppo_bringup sim.launch.py checkpoint:=FILE` (-s: arguments)."""

from d2ppo_ros.launching import description


def generate_launch_description():
    return description("sim")
