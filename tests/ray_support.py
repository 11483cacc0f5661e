"""Two Ray nodes on this machine, and accidents that happen to environments in actors."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from d2ppo_core.conf.schema import ClusterConfig
from d2ppo_core.envs import EnvRequest, RawObservation, Step
from d2ppo_core.scale.cluster import import_ray
from d2ppo_core.scale.ray_env import RayVectorEnv

NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


@contextmanager
def ray_nodes(count: int = 2) -> Iterator[Any]:
    """`ray.cluster_utils.Cluster` of `count` nodes with two CPUs each (in name); ended with all their processes."""
    import_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        for _ in range(count - 1):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


def joined(cluster: Any, simulator: str, request: EnvRequest, **options: Any) -> RayVectorEnv:
    """Environments in actors of the cluster."""
    return RayVectorEnv(ClusterConfig(kind="ray", address=cluster.address, **options), simulator, request)


def pids(env: RayVectorEnv) -> list[int]:
    """The process of each actor."""
    ray = import_ray()
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in env._actors._actors])


def strike(env: RayVectorEnv, actor: int) -> None:
    """Kill the actor's process before its next step; one that is dead already stays so."""
    env._actors._actors[actor].__ray_call__.remote(lambda _: os.kill(os.getpid(), signal.SIGKILL))


def kill(pid: int) -> None:
    """As the kernel does when memory is short."""
    os.kill(pid, signal.SIGKILL)


def assert_same(left: RawObservation | Step, right: RawObservation | Step) -> None:
    """Bit for bit, names and types included."""
    if isinstance(left, Step):
        left, right = ({**vars(step), **step.observation} for step in (left, right))
        left.pop("observation"), right.pop("observation")
    assert list(left) == list(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert np.array_equal(value, right[name]), name
