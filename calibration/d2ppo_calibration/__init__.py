"""Calibration: how a camera sees, where it stands, how late signals are, and how all that fits the simulation.

Everything works from recorded folders. Frames are named as in `a_b`: the pose of frame B in frame A, which maps
points of B to A, so that `a_b @ b_c` is `a_c`. A camera's frame is the optical one: x right, y down, z into the
picture.
"""
