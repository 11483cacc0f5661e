"""RealSense cameras: what is decided about them, without ROS and without the camera's library where that is possible.

`library.py` is the only module that knows `pyrealsense2`; a real camera, a software one and a recording differ in one
line there. Everything else is plain logic: counting frames, stamping them, noticing silence, starting anew.
"""
