"""Running a policy on a robot: ROS 2 nodes, and the pure logic behind them.

`records.py` is what travels; the logic knows only that. `codec.py` and `nodes/` know ROS.
"""
