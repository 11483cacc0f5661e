"""Running a study: commands in processes of their own, several at a time, every result written down as it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .outcome import failed_rows, finished_rows
from .plan import Plan, Run, Stage
from .store import Store

THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
POLL = 0.05  # s
REASON = 400  # characters of a failure's reason that are kept


@dataclass
class Job:
    """A run, or a dataset: its commands one after the other."""

    owner: str
    stages: list[Stage]
    run: Run | None = None  # None: a dataset
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    reason: str = ""


@dataclass
class Progress:
    """What a table of progress shows."""

    runs: list[Run]
    active: list[Job] = field(default_factory=list)
    over_budget: bool = False
    ended: bool = False


class Runner:
    """The loop. One thread: it starts processes, looks after them, and writes."""

    def __init__(self, plan: Plan, store: Store, jobs: int, budget: float | None, retry: bool = False) -> None:
        """`budget`: CPU seconds of the whole study after which no further run is started; `retry`: failed runs too."""
        self.plan, self.store, self.jobs, self.budget, self.retry = plan, store, jobs, budget, retry
        self.program = [sys.executable, "-m", "d2ppo_core.study.stage"]
        self.failed_datasets: dict[str, str] = {}
        self.recording: set[str] = set()

    def run(self, runs: list[Run], progress: Progress) -> Iterator[None]:
        """Start and end commands until nothing is left; yields at each look, for the table of progress."""
        waiting = [run for run in runs if not self._settled(run)]
        try:
            while waiting or progress.active:
                progress.over_budget = self.budget is not None and self.store.cost()[0] >= self.budget
                if progress.over_budget:
                    waiting = []
                while len(progress.active) < self.jobs and (job := self._next(waiting)) is not None:
                    self._advance(job, progress)
                for job in list(progress.active):
                    self._look_after(job, progress)
                yield
                time.sleep(POLL)
        finally:
            progress.ended = True
            for job in progress.active:
                _kill(job)

    def _settled(self, run: Run) -> bool:
        """Whether all results of a run are in the table already."""
        rows = [row for row in self.store.rows() if row["run"] == run.name]
        wanted = {"pretrained", "finetuned"} if run.finetuned else {"pretrained"}
        if any(row["status"] == "failed" for row in rows):
            return not self.retry
        return {row["policy"] for row in rows} >= wanted

    def _next(self, waiting: list[Run]) -> Job | None:
        """The first run whose demonstrations are there, or the recording of those that another one needs."""
        for run in list(waiting):
            dataset = self.plan.dataset(run)
            if dataset in self.failed_datasets:
                waiting.remove(run)
                self._record_failure(run, f"its demonstrations failed: {self.failed_datasets[dataset]}")
            elif not dataset or self.plan.demos(run).done:
                waiting.remove(run)
                return Job(run.name, self.plan.stages(run), run)
            elif dataset not in self.recording:
                self.recording.add(dataset)
                return Job(f"demos/{dataset}", [self.plan.demos(run)])
        return None

    def _advance(self, job: Job, progress: Progress) -> None:
        """Start the next command that is not done; at the end write the results."""
        while job.stages and job.stages[0].done:
            job.stages.pop(0)
        if job.stages:
            self._start(job, job.stages[0])
            if job not in progress.active:
                progress.active.append(job)
            return
        if job in progress.active:
            progress.active.remove(job)
        self.recording.discard(job.owner.removeprefix("demos/"))
        if job.run is not None:
            for row in finished_rows(self.plan, job.run, self.store.cost(job.owner)):
                self.store.add(row)

    def _start(self, job: Job, stage: Stage) -> None:
        log = log_of(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [*self.program, str(os.getpid()), *stage.arguments]
        with open(log, "ab") as output:
            job.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **THREADS},
                pass_fds=self.store.inherited,
            )
        job.started = time.monotonic()

    def _look_after(self, job: Job, progress: Progress) -> None:
        """See whether a command has ended, and how."""
        assert job.process is not None
        pid, status, usage = os.wait4(job.process.pid, os.WNOHANG)
        if not pid:
            return
        code = job.process.returncode = os.waitstatus_to_exitcode(status)
        stage, wall = job.stages[0], time.monotonic() - job.started
        self.store.charge(job.owner, stage.name, usage.ru_utime + usage.ru_stime, wall, code)
        if code == 0 and stage.done:
            self._advance(job, progress)
            return
        progress.active.remove(job)
        reason = f"{stage.name}: {reason_of(stage, code)}"
        if job.run is not None:
            self._record_failure(job.run, reason)
        else:
            self.failed_datasets[job.owner.removeprefix("demos/")] = reason

    def _record_failure(self, run: Run, reason: str) -> None:
        for row in failed_rows(self.plan, run, self.store.cost(run.name), reason[:REASON]):
            self.store.add(row)


def _kill(job: Job) -> None:
    if job.process is not None and job.process.returncode is None:
        job.process.send_signal(signal.SIGTERM)
        try:
            job.process.wait(5)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()


def log_of(stage: Stage) -> Path:
    """Where a command's output goes: beside its folder."""
    return stage.folder.with_name(stage.folder.name + ".log")


def reason_of(stage: Stage, code: int) -> str:
    """Why a command failed: its last words, or the signal that ended it."""
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    lines = [line.strip() for line in log_of(stage).read_text(encoding="utf-8", errors="replace").splitlines()]
    words = [line for line in lines if line]
    return words[-1].removeprefix("d2ppo: ") if words else f"exit code {code}"
