"""Worker processes that each host one object, spoken to over pipes. Knows nothing of simulators.

A worker answers `(method, arguments)` with the method's result. Pickle travels only over the pipes between a process
and the children it started itself.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from d2ppo_core.errors import UserError
from d2ppo_core.machine import cores

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "LP_NUM_THREADS")
_JOIN_SECONDS = 5.0


class WorkerDied(UserError):
    """A worker process ended without an answer (killed, out of memory, crash in native code)."""


class Pool(Protocol):
    """W workers; each is sent one call at a time."""

    size: int

    def send(self, worker: int, method: str, *arguments: Any) -> None: ...

    def receive(self, worker: int) -> Any: ...

    def ready(self) -> list[int]: ...

    def close(self) -> None: ...


def make_pool(build: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], in_process: bool = False) -> Pool:
    """Host `build(*arguments[w])` in worker w. `build` must be a function of a module (it travels by name)."""
    return LocalPool(build, arguments) if in_process else ProcessPool(build, arguments)


def cpu_count(asked: int = 0) -> int:
    """`asked` workers, or one for each core that this process may use, a container's quota included."""
    return asked or cores()


class LocalPool:
    """The same calls without processes."""

    def __init__(self, build: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        self._hosted = [build(*a) for a in arguments]
        self._answers: dict[int, Any] = {}
        self.size = len(self._hosted)

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        self._answers[worker] = getattr(self._hosted[worker], method)(*arguments)

    def receive(self, worker: int) -> Any:
        return self._answers.pop(worker)

    def ready(self) -> list[int]:
        return list(self._answers)

    def close(self) -> None:
        for hosted in self._hosted:
            hosted.close()
        self._hosted = []


class ProcessPool:
    """Spawned daemon processes. They end with their parent, even if it is killed: their pipe then closes."""

    def __init__(self, build: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        context = get_context("spawn")
        self.size = len(arguments)
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._waiting: set[int] = set()
        with _one_thread_each():
            for number, own in enumerate(arguments):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, build, own), daemon=True, name=f"d2ppo-worker-{number}"
                )
                process.start()
                theirs.close()  # else a dead worker's pipe would stay open on our side, and we would wait for ever
                self._pipes.append(ours)
                self._processes.append(process)
        self._waiting.update(range(self.size))
        try:
            for worker in range(self.size):
                self.receive(worker)  # each says when it has built its object, or why not
        except BaseException:
            self.close()
            raise

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """Start a call; its result is fetched by `receive`."""
        try:
            self._pipes[worker].send((method, arguments))
        except OSError as error:
            raise self._death(worker) from error
        self._waiting.add(worker)

    def receive(self, worker: int) -> Any:
        """The result of the call that was sent; raises what it raised."""
        self._waiting.discard(worker)
        try:
            failed, answer = self._pipes[worker].recv()
        except (EOFError, OSError) as error:
            raise self._death(worker) from error
        if failed:
            raise answer
        return answer

    def ready(self) -> list[int]:
        """Workers whose answer (or death) has arrived; waits for at least one."""
        pipes = {self._pipes[w]: w for w in self._waiting}
        return sorted(pipes[pipe] for pipe in wait(list(pipes)))  # type: ignore[index]

    def _death(self, worker: int) -> WorkerDied:
        process = self._processes[worker]
        process.join(_JOIN_SECONDS)
        code = process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        return WorkerDied(
            f"simulation worker {worker} (process {process.pid}) {how}; if memory ran out (signal 9), "
            "use fewer environments or workers, then run the command again with resume=true"
        )

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        for pipe in self._pipes:
            pipe.close()  # the worker sees the end of its pipe
        for process in self._processes:
            process.join(_JOIN_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes, self._waiting = [], [], set()

    def __del__(self) -> None:
        self.close()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Children started meanwhile use one BLAS thread each: W workers with W threads each would fight for the cores."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _serve(pipe: Connection, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    hosted = None
    try:
        hosted, answer = _attempt(lambda: build(*arguments))
        pipe.send((isinstance(answer, Exception), answer))
        while hosted is not None:
            method, values = pipe.recv()
            result, error = _attempt(lambda: getattr(hosted, method)(*values))  # noqa: B023, called at once
            pipe.send((error is not None, error if error is not None else result))
    except (EOFError, OSError):
        pass  # the parent has closed the pipe, or is gone
    finally:
        if hosted is not None:
            hosted.close()


def _attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """(result, None), or (None, an exception that can travel)."""
    try:
        return work(), None
    except UserError as error:
        return None, UserError(str(error))
    except Exception:
        return None, RuntimeError(f"in a simulation worker:\n{traceback.format_exc()}")
