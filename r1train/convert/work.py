"""Work shared by several processes under one memory limit: groups of tensors, progress, and continuing after a kill."""

import multiprocessing
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Protocol

import psutil
import torch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from r1train.errors import CheckpointError, R1TrainError

_LEAST_BUFFER = 32 * 2**20
_PLAIN_INTERVAL_S = 5.0
_POLL_S = 1.0


class Job(Protocol):
    """Work in numbered groups; run() leaves a finished file and a record of it, or nothing."""

    def run(self, group: int) -> None: ...


@dataclass(frozen=True)
class Budget:
    """How many processes work, and how many bytes of tensors each may hold."""

    workers: int
    buffer_bytes: int


def memory_budget(*, max_memory_bytes: int, workers: int, least_bytes: int = 0) -> Budget:
    """Divide the limit, which is for the resident memory of all processes together.

    A process takes what this one takes now (mostly torch) before it holds any tensor. Fewer processes than asked for
    where the limit has no room for more. least_bytes: of tensors that one process has to hold.
    Raises CheckpointError when not even one process fits.
    """
    base = psutil.Process().memory_info().rss
    least = max(least_bytes, _LEAST_BUFFER)
    for count in range(workers, 0, -1):
        processes = 1 if count == 1 else count + 1
        room = (max_memory_bytes - processes * base) // count
        if room >= least:
            return Budget(count, room)
    raise CheckpointError(
        f"--max-memory of {max_memory_bytes / 2**20:.0f} MiB is too small: one process takes {base / 2**20:.0f} MiB "
        f"and has to hold {least / 2**20:.0f} MiB of tensors. Fix: at least {(base + least) / 2**20 + 1:.0f} MiB"
    )


def run_groups(job: Job, todo: list[int], sizes: list[int], *, workers: int, title: str) -> None:
    """Run the groups `todo`, largest first, in this process or in `workers` others, and show progress in bytes.

    Raises the first R1TrainError of a group; groups that are finished by then stay finished.
    """
    todo = sorted(todo, key=lambda group: -sizes[group])
    with _progress(title, total=sum(sizes), done=sum(sizes) - sum(sizes[group] for group in todo)) as advance:
        if min(workers, len(todo)) <= 1:
            for group in todo:
                job.run(group)
                advance(sizes[group])
        else:
            for group in _in_processes(job, todo, min(workers, len(todo))):
                advance(sizes[group])


def _in_processes(job: Job, todo: list[int], workers: int) -> Iterator[int]:
    """Groups as they finish. spawn, because a forked child of a process with threads may hang."""
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    for group in [*todo, *[None] * workers]:
        tasks.put(group)
    processes = [context.Process(target=_work, args=(job, tasks, results), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for _ in todo:
            finished = _next_result(results, processes)
            if isinstance(finished, R1TrainError):
                raise finished
            yield finished
    finally:
        for process in processes:
            process.terminate()
            process.join()
        tasks.cancel_join_thread()


def _next_result(results: multiprocessing.Queue, processes: list) -> int | R1TrainError:
    while True:
        try:
            return results.get(timeout=_POLL_S)
        except queue.Empty:
            failed = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if failed:
                raise CheckpointError(
                    f"a worker process ended with exit code {failed[0]} (-9: killed, often for want of memory). "
                    "Fix: see its traceback above, or give fewer --workers; the same command continues"
                ) from None


def _work(job: Job, tasks: multiprocessing.Queue, results: multiprocessing.Queue) -> None:
    """A worker process: one group after another until there are none; ends with its parent, even a killed one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    torch.set_num_threads(1)
    for group in iter(tasks.get, None):
        try:
            job.run(group)
        except R1TrainError as error:
            results.put(error)
            return
        results.put(group)


@contextmanager
def _progress(title: str, *, total: int, done: int) -> Iterator[Callable[[int], object]]:
    """advance(bytes) for a bar on a terminal, or a line every few seconds elsewhere, both with rate and time left."""
    if sys.stderr.isatty():
        columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns) as bar:
            task = bar.add_task(title, total=total, completed=done)
            yield lambda size: bar.advance(task, size)
        return
    start = printed = time.monotonic()
    position = done

    def advance(size: int) -> None:
        nonlocal position, printed
        position += size
        now = time.monotonic()
        if now - printed >= _PLAIN_INTERVAL_S or position == total:
            printed = now
            rate = (position - done) / max(now - start, 1e-9)
            left = (total - position) / rate
            line = f"{title}: {position / 1e9:.2f} of {total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    yield advance


def write_speed(folder: Path, *, size_bytes: int = 128 * 2**20) -> float:
    """Bytes per second that the file system of `folder` takes, measured with one synced file."""
    while not folder.exists():
        folder = folder.parent
    path = folder / f".speed.{os.getpid()}"
    block = bytes(2**20)
    start = time.monotonic()
    try:
        with open(path, "wb") as file:
            for _ in range(size_bytes // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    return size_bytes / (time.monotonic() - start)
