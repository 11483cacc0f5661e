"""Stand-ins: processes that answer a real client library as the hardware would, for tests and for who has none.

`arm.py` is a Franka FR3 (franky-sim, its physics in MuJoCo) with faults put in on request. The driver in front of it is
the one that drives a real arm, unchanged. Times are the robot's own: a slow machine makes its clock slow, not its arm.
"""
