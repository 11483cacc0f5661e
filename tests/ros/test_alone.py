"""Two systems on one ROS domain."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from d2ppo_core.errors import UserError

pytest.importorskip("rclpy")

from d2ppo_ros import graph
from d2ppo_ros.alone import require_alone

pytestmark = pytest.mark.ros
OTHER = """
import rclpy, sys
rclpy.init()
node = rclpy.create_node("executor")
print("up", flush=True)
sys.stdin.read()
"""


def wanted(*names: str) -> graph.System:
    return graph.System([graph.Process(name, "no.module") for name in names], [], graph.environment())


def test_a_second_system_on_the_domain_is_refused_and_another_domain_is_free():
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], env=graph.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"up\n"
        with pytest.raises(UserError, match=f"on ROS domain {os.environ['ROS_DOMAIN_ID']} there is /executor already"):
            require_alone(wanted("safety", "executor"))
        require_alone(wanted("safety", "recorder"))
        elsewhere = wanted("executor")
        elsewhere.environment["ROS_DOMAIN_ID"] = "103"
        require_alone(elsewhere)
        other.stdin.close()
    require_alone(wanted("executor"))
