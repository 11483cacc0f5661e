"""The ROS 2 nodes: thin shells around the logic of this package. Each module runs with `python -m`."""
