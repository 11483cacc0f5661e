"""A real Franka arm, as everything but its node sees it: limits, frames, references, watchdogs, gripper, connection.

Nothing here knows ROS. What touches the client library (franky) imports it late, so that all else works without it.
"""
