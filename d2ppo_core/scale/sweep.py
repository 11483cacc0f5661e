"""`-m hydra/launcher=ray`: the jobs of a sweep as tasks of a Ray cluster, several at a time.

Hydra composes every job here, as it does without Ray; what travels is the finished configuration. A job whose worker is
lost is started again with resume=true.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..conf.schema import Config
from ..errors import UserError
from .cluster import Cluster

RESTARTS = 3  # of one job whose worker was lost
_log = logging.getLogger(__name__)


def run_jobs(main: Callable[[Config], Any], configs: Sequence[Config]) -> list[UserError]:
    """Run `main` of each configuration on the cluster that the first one names; what went wrong, in their order."""
    options = configs[0].cluster
    if options.job_cpus < 1 or options.job_gpus < 0:
        raise UserError(
            f"cluster.job_cpus={options.job_cpus} must be at least 1, cluster.job_gpus={options.job_gpus} at least 0"
        )
    configs = [replace(config, threads=config.threads or options.job_cpus) for config in configs]
    cluster = Cluster(options, options.job_cpus)
    try:
        return _Jobs(cluster, main, configs, {"num_cpus": options.job_cpus, "num_gpus": options.job_gpus}).run()
    finally:
        cluster.leave()


class _Jobs:
    """Tasks under way, and what became of them."""

    def __init__(
        self, cluster: Cluster, main: Callable[[Config], Any], configs: Sequence[Config], needs: dict[str, float]
    ) -> None:
        self._cluster, self._main, self._configs = cluster, main, configs
        self._ray = cluster._ray
        have = self._ray.cluster_resources()
        for name, resource in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
            if needs[name] > have.get(resource, 0):
                raise UserError(
                    f"a job asks for {needs[name]:g} {resource}s, but the Ray cluster has {have.get(resource, 0):g}; "
                    f"lower cluster.job_{resource.lower()}s"
                )
        self._task = self._ray.remote(max_retries=0, **needs)(_work)
        self._under_way: dict[Any, tuple[int, int]] = {}  # object reference -> job, how often it was started again
        self._mistakes: dict[int, UserError] = {}

    def _start(self, number: int, restarts: int) -> None:
        config = self._configs[number]
        if restarts:
            config = replace(config, resume=True, overwrite=False)
        self._under_way[self._task.remote(self._main, config, os.getcwd())] = number, restarts

    def run(self) -> list[UserError]:
        """Wait for all. One that fails leaves the others alone; a lost head ends the sweep."""
        for number in range(len(self._configs)):
            self._start(number, 0)
        while self._under_way:
            for done in self._cluster.ready(list(self._under_way)):
                self._finish(done, *self._under_way.pop(done))
        return [self._mistakes[number] for number in sorted(self._mistakes)]

    def _finish(self, answer: Any, number: int, restarts: int) -> None:
        """One job is over: well, with a mistake of the user's, or because its worker is gone."""
        folder, errors = Path(self._configs[number].run_dir).absolute(), self._ray.exceptions
        try:
            mistake = self._ray.get(answer)
        except errors.RayTaskError as error:
            raise RuntimeError(f"in the job of {folder}:\n{error}") from error
        except errors.RayError as error:
            self._cluster.require_head()
            if restarts < RESTARTS:
                _log.warning("the worker of %s is lost; the job goes on in another one", folder)
                self._start(number, restarts + 1)
                return
            mistake = (
                f"lost its worker {restarts + 1} times ({str(error).splitlines()[0]}); if memory ran out run fewer "
                "jobs at once (a higher cluster.job_cpus), then the same command with resume=true"
            )
        if mistake:
            self._mistakes[number] = UserError(f"{folder.name}: {mistake}")
        elif (folder / "summary.json").exists():
            print(folder / "summary.json", flush=True)


def _work(main: Callable[[Config], Any], config: Config, folder: str) -> str:
    """One job in a worker, in the folder where the sweep was started; the sentence of a UserError, or ""."""
    try:
        os.chdir(folder)
    except OSError:
        return f"a node of the Ray cluster does not see {folder}; start sweeps in a folder that all nodes share"
    try:
        main(config)
    except UserError as error:
        return str(error)
    return ""
