"""What the ROS 2 side can measure: the running system's times, and what happens where chunks meet."""
