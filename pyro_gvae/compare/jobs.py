"""Run a function on many jobs, in joblib processes or on a Dask cluster; a failed job does not stop the others."""

import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from ..runs.folder import HeldError
from ..runtime.extras import import_extra
from ..runtime.memory import keep_freed_memory
from ..runtime.signals import end_with

#: How often worker processes may die, usually for lack of memory, before the remaining jobs fail.
MOST_DEATHS = 3
#: Seconds to wait for a cluster.
PATIENCE = 20


class Outcome(NamedTuple):
    """The outcome of a job.

    Args:
        number: the index of the job.
        error: the error message in one sentence; None if the job succeeded.
        is_held: whether another process works on the job, so that it has neither succeeded nor failed.
    """

    number: int
    error: str | None = None
    is_held: bool = False


#: A function that runs a function on jobs, and yields an outcome whenever a job ends.
RunJobs = Callable[[Callable[[Any], None], Sequence[Any]], Generator[Outcome, None, None]]


def on_processes(workers: int) -> RunJobs:
    """Run jobs in processes on this machine, which divide the threads of this one; one worker runs in this process.

    Jobs of a process that died are started again. The processes end when this one does.

    Raises:
        ValueError: if this machine has no semaphores, with which processes wait for each other.
    """
    if workers == 1:
        return _one_after_another
    _check_semaphores()
    attempt = partial(_attempt_in_worker, os.getpid())

    def run(function: Callable[[Any], None], jobs: Sequence[Any]) -> Generator[Outcome, None, None]:
        from joblib import Parallel, delayed, parallel_config  # imported here, since nothing else needs it

        left = dict(enumerate(jobs))
        for _ in range(MOST_DEATHS):
            try:
                with parallel_config("loky", inner_max_num_threads=max(1, torch.get_num_threads() // workers)):
                    parallel = Parallel(workers, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
                    outcomes = parallel(delayed(attempt)(function, index, job) for index, job in list(left.items()))
                with closing(outcomes):  # if the loop is left early, end the processes at once
                    for outcome in outcomes:
                        del left[outcome.number]
                        yield outcome
                return
            except BrokenProcessPool as error:
                died = error
        for index in left:
            yield Outcome(index, _died(died))

    return run


def _one_after_another(function: Callable[[Any], None], jobs: Sequence[Any]) -> Generator[Outcome, None, None]:
    for index, job in enumerate(jobs):
        yield _attempt(function, index, job)


@contextmanager
def on_cluster(address: str) -> Iterator[RunJobs]:
    """Run jobs on the workers of a Dask cluster; a job whose worker died is started again on another one.

    Args:
        address: the address of the scheduler.

    Raises:
        ValueError: if the package `distributed` is absent, no scheduler answers, there are no workers, or one of them
            has several threads: a process has one random state, so it must run its jobs one after the other.
    """
    distributed = import_extra("distributed", extra="dask", purpose="the backend dask")
    try:
        client = distributed.Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        raise ValueError(f"Expected a Dask scheduler at '{address}', but found none that answers.") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ValueError(f"Expected workers of the Dask scheduler at '{address}', but found none.") from error
        threads = max(client.nthreads().values())
        if threads > 1:
            raise ValueError(
                f"Expected Dask workers of one thread each, but found one of {threads}. Try: dask worker --nthreads 1."
            )

        def run(function: Callable[[Any], None], jobs: Sequence[Any]) -> Generator[Outcome, None, None]:
            futures = {
                client.submit(_attempt, function, index, job, pure=False): index for index, job in enumerate(jobs)
            }
            for future in distributed.as_completed(list(futures)):
                error = future.exception()
                yield future.result() if error is None else Outcome(futures[future], _died(error))

        yield run


def _attempt_in_worker(parent: int, function: Callable[[Any], None], index: int, job: Any) -> Outcome:
    keep_freed_memory()  # the process is ours alone
    end_with(parent)
    return _attempt(function, index, job)


def _attempt(function: Callable[[Any], None], index: int, job: Any) -> Outcome:
    try:
        function(job)
    except HeldError:
        return Outcome(index, is_held=True)
    except Exception as error:
        return Outcome(index, str(error).split("\n")[0] or type(error).__name__)
    return Outcome(index)


def _check_semaphores() -> None:
    try:
        multiprocessing.get_context("spawn").Semaphore()
    except (ImportError, OSError) as error:
        raise ValueError(
            f"Expected a machine whose processes can wait for each other, but found no semaphores ({error}). Try to "
            "make /dev/shm writable, or one worker."
        ) from error


def _died(error: BaseException) -> str:
    return (
        f"Expected worker processes to survive, but found that they died repeatedly ({type(error).__name__}). Try more "
        "memory, or fewer workers."
    )
