"""ROS for tests: its field checks on, nothing beyond this machine, a domain of each worker's own."""

from __future__ import annotations

import os

from d2ppo_ros.environment import environment

os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"  # read when messages are first imported
os.environ.update(environment())
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
os.environ["ROS_DOMAIN_ID"] = str(40 + (os.getppid() % 6) * 10 + WORKER % 10)  # 0 to 101 are safe
