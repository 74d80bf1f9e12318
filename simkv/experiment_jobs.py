"""The runs of a sweep as jobs: computed here, by local processes, or by any executor.

What it is: the execution of jobs, the bar that shows it, and one line for each failure.  What it is
not: which jobs there are (``experiments.py``) or the simulation (``simulator.run``).
"""

import concurrent.futures
import functools
import logging
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simkv.config import RunConfig
from simkv.errors import SimkvError
from simkv.experiment_bounds import SavedBound
from simkv.experiment_files import staged
from simkv.simulator.metrics import Result
from simkv.traces.storage import open_arrow
from simkv.traces.trace import Trace

__all__ = ["Bar", "Job", "Runner", "run_jobs"]

Runner = Callable[..., Result | SavedBound]
Report = Callable[[int, int], None]
Finished = Callable[["Job", BaseException | None], None]

_LOG = logging.getLogger(__name__)
_WORKER_DIED = (
    "a worker process died (out of memory, killed, or a script that starts workers outside "
    "`if __name__ == '__main__':`); what is finished is kept, and the same sweep goes on from there"
)


@dataclass(frozen=True)
class Job:
    """What computes one run: small enough to send to another process, with paths instead of arrays."""

    title: str
    config: RunConfig
    trace: Path
    folder: Path
    runner: Runner


def run_jobs(
    jobs: list[Job], *, workers: int, executor: concurrent.futures.Executor | None, errors: Path, bar: "Bar"
) -> list[str]:
    """Compute all jobs; one that fails does not stop the others.

    Args:
        jobs: what to compute, each once.
        workers: processes to use when there is no executor; 1 is this process.
        executor: where else to compute.
        errors: folder for the tracebacks of failures that are not the user's.
        bar: is told of every finished run.

    Returns:
        One line for each job that failed, in the order in which they did.
    """
    failed: list[str] = []

    def finished(job: Job, error: BaseException | None) -> None:
        bar.run()
        if error is not None:
            failed.append(_describe(job, error, errors))
            _LOG.warning("%s", failed[-1])

    workers = min(workers, len(jobs))
    if executor is not None:
        _run_in(executor, jobs, finished)
    elif workers > 1:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=_leave_interrupts) as pool:
            _run_in(pool, jobs, finished)
    else:
        _run_here(jobs, finished, bar.request)
    return failed


def _run_here(jobs: list[Job], finished: Finished, report: Report) -> None:
    for job in jobs:
        error: Exception | None = None
        try:
            _execute(job, report)
        except Exception as caught:
            error = caught
        finished(job, error)


def _run_in(executor: concurrent.futures.Executor, jobs: list[Job], finished: Finished) -> None:
    futures: dict[concurrent.futures.Future[None], Job] = {}
    try:
        for job in jobs:
            futures[executor.submit(_execute, job)] = job
        for future in concurrent.futures.as_completed(futures):
            error = future.exception()
            if isinstance(error, concurrent.futures.BrokenExecutor):
                raise SimkvError(_WORKER_DIED) from error
            finished(futures[future], error)
    finally:
        for future in futures:
            future.cancel()


def _leave_interrupts() -> None:
    """Ctrl-C reaches workers too; they finish the run under way, and the parent starts no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _execute(job: Job, report: Report | None = None) -> None:
    """Compute one run and put its result in place."""
    result = job.runner(job.config, trace=_open_trace(job.trace), progress=report)
    with staged(job.folder) as temporary:
        result.save(temporary)


@functools.lru_cache(maxsize=2)
def _open_trace(path: Path) -> Trace:
    # Never out of date: the file's name is a hash of what it was made from.
    return open_arrow(path)


def _describe(job: Job, error: BaseException, errors: Path) -> str:
    """One line about a failed run; the traceback of a programming error goes into ``errors``."""
    text = " ".join(str(error).split())
    if isinstance(error, SimkvError):
        return f"{job.title}: {text}"
    errors.mkdir(parents=True, exist_ok=True)
    path = errors / f"{job.folder.name}.txt"
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"{job.title}: {type(error).__name__}: {text} (traceback in {path})"


class Bar:
    """The bar on stderr: runs with the time that is left and, in this process, the requests of the present run."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not (shown and sys.stderr.isatty())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=hidden)
        self._runs = self._progress.add_task("runs", total=total, completed=done)
        self._requests = self._progress.add_task("requests", total=None, visible=False)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def request(self, done: int, total: int) -> None:
        """``done`` of ``total`` requests of the present run are served."""
        self._progress.update(self._requests, completed=done, total=total, visible=True)

    def run(self) -> None:
        """One more run is finished."""
        self._progress.advance(self._runs)
        self._progress.update(self._requests, visible=False)
