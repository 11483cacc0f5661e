"""Trials as files: recorded by a node, then shown, replayed, exported and recovered without ROS."""
