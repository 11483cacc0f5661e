"""The last look before the robot: pure logic that knows robot, clock and cameras, and nothing of the policy.

`monitor.SafetyMonitor` is what the safety node runs; `watchdog.Watchdog` is what the robot's own servo loop runs.
"""
