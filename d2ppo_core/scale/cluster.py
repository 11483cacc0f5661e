"""Joining a Ray cluster, or starting one of this machine's cores; noticing when it is lost; leaving no trace.

Ray's processes speak pickle to one another and run what they are sent: a cluster is one trusted machine in several
boxes, and belongs into a network of its own.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
import time
from typing import Any

from ..conf.schema import ClusterConfig
from ..errors import UserError
from ..machine import cores

POLL = 1.0  # s between two looks at the head while waiting for answers
HEAD_SECONDS = 10.0  # for which the head may not answer, before it counts as lost
STORE_BYTES = 128 << 20  # of shared memory, for answers beyond 100 kB: pictures
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # actors see no GPU; stated, Ray does not warn that this may change
}
# Ray ends a process whose head is gone for a minute, without a word to us. We look ourselves, and say what to do. Not
# with a cluster of our own, whose processes would inherit it.
PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}


def import_ray(joining: bool = False) -> Any:
    """The library, told to send no statistics home; `joining`: a cluster that others started."""
    for name, value in (ENVIRONMENT | (PATIENCE if joining else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(f"this needs Ray ({error}); run `make setup`, or `pip install ray`") from error
    return ray


class Cluster:
    """This process's membership. Several may be held at once (environments to learn from, and to evaluate in)."""

    _held = 0
    _folder: str | None = None  # of logs and sockets of the cluster that we started; None: it is not ours
    _found = False  # this process was a member before we came, as a job of a sweep is, and stays one

    def __init__(self, config: ClusterConfig, workers: int = 0) -> None:
        """Join `config.address`, or start a cluster with a CPU for each of `workers` and at least for each core."""
        self._ray = import_ray(joining=bool(config.address))
        if Cluster._held == 0:
            Cluster._found = self._ray.is_initialized()
            if not Cluster._found:
                self._connect(config.address, max(cores(), workers))
        self.first = Cluster._held == 0  # whoever comes later takes turns with the first, and reserves nothing
        Cluster._held += 1
        self._held = True
        self.address = self._ray.get_runtime_context().gcs_address
        self.cpus = int(self._ray.cluster_resources().get("CPU", 0))

    def _connect(self, address: str, cpus: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not address:
            Cluster._folder = tempfile.mkdtemp(prefix="d2ppo-ray-")
            options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
            options["_temp_dir"] = Cluster._folder
        try:
            self._ray.init(_head_of(address) if address else "local", **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self._forget()
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"cannot join the Ray cluster at '{address}' ({reason}); start one by `ray start --head`, or leave "
                "cluster.address out"
                if address
                else f"Ray does not start here ({reason}); use rollout=local"
            ) from error

    def free_cpus(self) -> int:
        """CPUs that nobody has reserved just now."""
        return int(self._ray.available_resources().get("CPU", 0))

    def answers(self) -> bool:
        """Whether the head takes a connection."""
        try:
            _knock(self.address)
        except OSError:
            return False
        return True

    def require_head(self) -> None:
        """Return at once where the head answers; stop the run where it has been silent for HEAD_SECONDS."""
        since = time.monotonic()
        while not self.answers():
            if time.monotonic() - since > HEAD_SECONDS:
                raise UserError(
                    f"the Ray cluster's head at {self.address} does not answer any more; start the cluster again, then "
                    "run the same command with resume=true"
                )
            time.sleep(POLL / 4)

    def ready(self, answers: list[Any], seconds: float = float("inf")) -> list[Any]:
        """One of the object references, once it is ready; none after `seconds`. Raises where the head is lost."""
        since = time.monotonic()
        while not (found := self._ray.wait(answers, timeout=POLL)[0]):
            self.require_head()
            if time.monotonic() - since > seconds:
                break
        return found

    def leave(self) -> None:
        """End the membership, and the cluster where it is ours. Safe to call twice."""
        if not self._held:
            return
        self._held = False
        Cluster._held -= 1
        if Cluster._held == 0 and not Cluster._found:
            self._ray.shutdown()
            self._forget()

    def _forget(self) -> None:
        if Cluster._folder:
            shutil.rmtree(Cluster._folder, ignore_errors=True)
            Cluster._folder = None


def _head_of(address: str) -> str:
    """HOST:PORT of a head that takes connections; a ConnectionError, ValueError or OSError else."""
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address_or_die

        address = canonicalize_bootstrap_address_or_die(address)
    if not re.fullmatch(r"[^/]+:\d+", address):
        raise ValueError("give auto or HOST:PORT")
    _knock(address)  # Ray would wait for one that is not there
    return address


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=5 * POLL).close()
