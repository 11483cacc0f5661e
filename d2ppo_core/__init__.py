"""d2ppo_core: learning and inference of diffusion policies. Knows torch and numpy; no simulator, no ROS."""

__version__ = "0.1.0"
