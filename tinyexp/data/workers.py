"""A pool of processes that ends with the process that made it, and a map over one that outlives its workers' deaths."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from multiprocessing import connection
from typing import TypeVar

from tinyexp.cores import available_cores

_CHUNK = 64  # tasks sent at once: some 10 ms of small images, so that sending does not count

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """That many workers, forked on Linux, where that takes no time, and spawned elsewhere.

    A worker leaves Ctrl-C to its parent and ends when the parent ends, even when it is killed.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)
    with warnings.catch_warnings():
        # Python 3.12 warns of forks of a process with threads, which numpy's BLAS starts; the workers fork here, all
        # of them at the first task, and take no lock that a thread of ours could hold
        warnings.filterwarnings("ignore", message=r".*multi-threaded", category=DeprecationWarning)
        pool.submit(os.getpid)
    return pool


def end_workers(pool: ProcessPoolExecutor) -> None:
    """At once, whatever they are at; the pool's own shutdown waits for them, and may for ever where one was killed."""
    for process in list((pool._processes or {}).values()):  # Python 3.14 has a public kill_workers
        process.kill()
    pool.shutdown()


class Workers:
    """As many as there are cores, begun when first asked for; on any error within the context ended at once."""

    def __init__(self) -> None:
        self.processes = available_cores()

    def __enter__(self) -> Workers:
        return self

    @cached_property
    def pool(self) -> ProcessPoolExecutor:
        return worker_pool(self.processes)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if "pool" in self.__dict__:
            end_workers(self.pool) if kind else self.pool.shutdown()


def map_tasks(
    function: Callable[[Task], Answer],
    tasks: Sequence[Task],
    *,
    processes: int,
    on_death: Callable[[Task], Answer],
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """`function` of each task, in their order, by `processes` workers; what is sent must be picklable.

    `on_death` answers for a task whose worker dies of it: a decoder's fault, or the system out of memory. `progress` is
    called with the number of tasks done and of all. What `function` raises is raised here.
    """
    answers: dict[int, list[Answer]] = {}  # by the number of a chunk's first task
    waiting = list(range(0, len(tasks), _CHUNK))[::-1]
    done = 0
    while waiting:
        suspects: list[int] = []  # chunks that were under way when a worker died
        for first, answer in _run_until_a_death(function, tasks, waiting, suspects, processes):
            answers[first] = answer
            done += len(answer)
            if progress:
                progress(done, len(tasks))
        for first in suspects:
            answers[first] = _run_singly(function, tasks[first : first + _CHUNK], on_death)
            done += len(answers[first])
            if progress:
                progress(done, len(tasks))
    return [answer for first in range(0, len(tasks), _CHUNK) for answer in answers[first]]


def _run_until_a_death(
    function: Callable[[Task], Answer], tasks: Sequence[Task], waiting: list[int], suspects: list[int], processes: int
) -> Iterator[tuple[int, list[Answer]]]:
    """Answers of chunks as they come, until all are there or a worker dies; chunks under way then go to `suspects`."""
    pool = worker_pool(processes)
    running: dict[Future[list[Answer]], int] = {}
    try:
        while (waiting or running) and not suspects:
            while waiting and len(running) < 2 * processes:  # so few that a death leaves few suspects
                first = waiting.pop()
                try:
                    running[pool.submit(_run_chunk, function, tasks[first : first + _CHUNK])] = first
                except BrokenProcessPool:
                    suspects.append(first)
                    break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield from _collect(future, running.pop(future), suspects)
        for future, first in running.items():  # without a wait to speak of: the pool is broken
            yield from _collect(future, first, suspects)
    except BaseException:
        end_workers(pool)
        raise
    pool.shutdown()


def _collect(future: Future[list[Answer]], first: int, suspects: list[int]) -> Iterator[tuple[int, list[Answer]]]:
    try:
        answers = future.result()
    except BrokenProcessPool:
        suspects.append(first)
    else:
        yield first, answers


def _run_chunk(function: Callable[[Task], Answer], tasks: Sequence[Task]) -> list[Answer]:
    return [function(task) for task in tasks]


def _run_singly(
    function: Callable[[Task], Answer], tasks: Sequence[Task], on_death: Callable[[Task], Answer]
) -> list[Answer]:
    """One task at a time in a process that is made anew after each death, so that the task that kills is known."""
    answers: list[Answer] = []
    pool: ProcessPoolExecutor | None = None
    try:
        for task in tasks:
            pool = pool or worker_pool(1)
            try:
                answers.append(pool.submit(function, task).result())
            except BrokenProcessPool:
                answers.append(on_death(task))
                pool.shutdown()
                pool = None
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return answers


def _begin() -> None:
    """A worker's first act."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has its parent's handlers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
