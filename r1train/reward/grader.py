"""Grades answers in killable worker processes, or in-process for verifiers that cannot hang."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import r1train
from r1train.dist.parent import child_environment
from r1train.errors import ConfigError, DataError, EnvironmentProblem, Problem
from r1train.reward.accuracy import needs_process, verify
from r1train.reward.worker import grade_one

# Start-up and the import of a verifier are not the answer's fault: they have their own, generous limit.
START_LIMIT_S = 120.0
# How often a pool that has worked tries to start a grader again, a minute in all: the pause after a failure doubles.
START_TRIES = 7
START_PAUSE_S = 1.0
PACKAGE_PARENT = Path(r1train.__file__).resolve().parents[1]
WORKER_COMMAND = (sys.executable, "-m", "r1train.reward.worker")


@dataclass(frozen=True)
class GradeItem:
    """One answer to grade. entry: {"question", "answer", "metadata"} of the problem, JSON-ready.

    limit_s: instead of the pool's timeout_s, for verifiers that have limits of their own within it (code).
    """

    task: str
    answer: str
    entry: dict[str, Any]
    limit_s: float | None = None


@dataclass(frozen=True)
class Grade:
    """correct: 1.0 or 0.0, None exactly when error says why there is no verdict."""

    correct: float | None
    error: str | None


class _Worker:
    """One grader process. It runs its own interpreter: no fork of a process with threads, no import of our main."""

    def __init__(self, command: Sequence[str], timeout_s: float):
        # The worker must find the same r1train, from whatever folder this process was started.
        search_path = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment = {**child_environment(), **threads, "PYTHONPATH": search_path}
        self.process = subprocess.Popen(
            [*command, str(timeout_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.ready = False
        self.started = False
        self.item: int | None = None
        self.timeout_s = self.limit_s = timeout_s
        self.deadline = time.monotonic() + START_LIMIT_S
        self.buffer = b""

    def send(self, position: int, item: GradeItem) -> None:
        """Hands over item number `position`; only to an idle worker, which is reading, so the write cannot block."""
        self.limit_s = self.timeout_s if item.limit_s is None else item.limit_s
        message = {"task": item.task, "answer": item.answer, "entry": item.entry, "limit_s": self.limit_s}
        self.item, self.started = position, False
        self.deadline = time.monotonic() + START_LIMIT_S
        self.stdin.write(json.dumps(message).encode() + b"\n")
        self.stdin.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have arrived; None when the process has closed its side, i.e. ended."""
        data = os.read(self.stdout.fileno(), 65536)
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else None

    def kill(self) -> int:
        """Ends the process and returns its exit code."""
        self.process.kill()
        code = self.process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # an item that it never read is still in the buffer
            self.stdin.close()
        return code


class Grader:
    """A pool of this rank's grader processes, started when the first item comes; a context manager, or call close().

    grade() does all at once. Or: submit() items as they come, poll() now and then so that idle graders get the next
    one, collect() all. Verdicts do not depend on when items came or which grader took them. processes = 0 grades in
    this process: only for verifiers that cannot hang. Use it from one thread, which should be the main one.
    """

    def __init__(self, *, processes: int, timeout_s: float, command: Sequence[str] = WORKER_COMMAND):
        self.processes = processes
        self.timeout_s = timeout_s
        self._command = command
        self._workers: list[_Worker] = []
        self._items: list[GradeItem] = []
        self._todo: deque[int] = deque()
        self._grades: dict[int, Grade] = {}
        self._crashed: set[int] = set()
        self._ever_ready = False
        self._failed_starts = 0  # in a row
        self._next_start = 0.0  # monotonic s

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        """Grades in the order of items; see collect()."""
        assert not self._items, "collect() what was submitted first"
        for item in items:
            self.submit(item, wake=False)
        return self.collect()

    def submit(self, item: GradeItem, *, wake: bool = True) -> None:
        """Takes one item; with wake, idle graders start at once. Raises as collect() does, for any earlier item."""
        self._items.append(item)
        if self.processes == 0:
            self._grades[len(self._items) - 1] = self._grade_here(item)
            return
        self._todo.append(len(self._items) - 1)
        if wake:
            self.poll()

    def poll(self) -> None:
        """Books what has arrived and hands out the next items, without waiting. Raises as collect() does."""
        self._advance(wait=False)

    def collect(self) -> list[Grade]:
        """Waits for all items and returns their grades in the order of submission; the pool is empty again.

        A hung or crashed grader is killed and replaced, its item gets an error. A crash costs its item an error only
        when it happens twice: a grader that was killed from outside, as by the system when memory ran out, must not
        change what the run learns from. Where a pool that has worked is without graders and none starts, START_TRIES
        times, all that waits gets an error.
        Raises EnvironmentProblem where no grader of this pool ever started, DataError for an unknown task, ConfigError
        for a task that needs a process where there is none.
        """
        while len(self._grades) < len(self._items):
            self._advance(wait=True)
        grades = [self._grades[position] for position in range(len(self._items))]
        self._forget()
        return grades

    def _advance(self, *, wait: bool) -> None:
        if len(self._grades) == len(self._items):
            return
        try:
            self._hand_out()
            self._receive(wait=wait)
            self._hand_out()
        except BaseException:
            self.close()  # workers still hold items: their answers must not reach the next ones
            self._forget()
            raise

    def _forget(self) -> None:
        self._items, self._grades = [], {}
        self._todo.clear()
        self._crashed.clear()

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def __enter__(self) -> "Grader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _grade_here(self, item: GradeItem) -> Grade:
        if needs_process(item.task):
            what = f"the verifier of task {item.task!r} can hang, so it must run in a process of its own"
            raise ConfigError([Problem("reward.grader_processes", 0, what, "1 or more")])
        return Grade(*grade_one(verify, item.task, item.answer, item.entry))

    def _hand_out(self) -> None:
        busy = sum(worker.item is not None for worker in self._workers)
        while len(self._workers) < min(self.processes, busy + len(self._todo)):
            if time.monotonic() < self._next_start or not self._start():
                break
        for worker in list(self._workers):
            if worker.ready and worker.item is None and self._todo:
                position = self._todo.popleft()
                try:
                    worker.send(position, self._items[position])
                except BrokenPipeError:  # it died while idle: no item is to blame
                    self._todo.appendleft(position)
                    worker.item = None
                    self._discard(worker)

    def _start(self) -> bool:
        """Starts one more grader; False where the host has no room for a process."""
        try:
            self._workers.append(_Worker(self._command, self.timeout_s))
        except OSError as error:
            self._book_failed_start(f"{error}")
            return False
        return True

    def _book_failed_start(self, reason: str) -> None:
        """Another start is tried later; in the end, where no grader is left or under way, all that waits gives up."""
        if not self._ever_ready:
            fix = "run `python -m r1train.reward.worker 1` and read its error"
            raise EnvironmentProblem(f"a grader process did not start ({reason}). Fix: {fix}")
        now = time.monotonic()
        if now >= self._next_start:  # graders that were started together fail together: one failure
            self._next_start = now + START_PAUSE_S * 2**self._failed_starts
            self._failed_starts += 1
        if self._failed_starts >= START_TRIES and not self._workers:
            self._grades |= {item: Grade(None, f"no grader process started ({reason})") for item in self._todo}
            self._todo.clear()
            self._failed_starts = 0

    def _receive(self, *, wait: bool) -> None:
        """Books what has arrived and which deadlines have passed; with wait, until there is one or the other."""
        waiting = [worker for worker in self._workers if worker.item is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in waiting:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
            # Without a worker to wait for, items wait for the next start.
            pause = min((worker.deadline for worker in waiting), default=self._next_start) - time.monotonic()
            arrived = [key.data for key, _ in selector.select(max(pause, 0.0) if wait else 0.0)]
        for worker in arrived:
            messages = worker.receive()
            if messages is None and worker.ready and worker.item is not None and worker.item not in self._crashed:
                self._crashed.add(worker.item)
                self._todo.appendleft(worker.item)
                self._discard(worker)
            elif messages is None:
                self._give_up(worker, "grader process ended with exit code {code}")
            for message in messages or []:
                self._book(worker, message)
        for worker in waiting:
            if worker in self._workers and worker not in arrived and time.monotonic() >= worker.deadline:
                limit = worker.limit_s if worker.started else START_LIMIT_S
                self._give_up(worker, f"grader timed out after {limit:g} s")

    def _book(self, worker: _Worker, message: dict[str, Any]) -> None:
        if "ready" in message:
            worker.ready = self._ever_ready = True
            self._failed_starts, self._next_start = 0, 0.0
        elif "started" in message:
            worker.started = True
            worker.deadline = time.monotonic() + worker.limit_s
        elif "user_error" in message:
            raise DataError(message["user_error"])
        else:
            assert worker.item is not None, message
            self._grades[worker.item] = Grade(message.get("correct"), message.get("error"))
            worker.item = None

    def _give_up(self, worker: _Worker, reason: str) -> None:
        item = worker.item
        code = self._discard(worker)
        if not worker.ready:
            self._book_failed_start(reason.format(code=code))
        if item is not None:
            self._grades[item] = Grade(None, reason.format(code=code))

    def _discard(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.kill()
