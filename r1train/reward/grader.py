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
from r1train.errors import ConfigError, DataError, EnvironmentProblem, Problem
from r1train.reward.accuracy import needs_process, verify
from r1train.reward.worker import grade_one

# Start-up and the import of a verifier are not the answer's fault: they have their own, generous limit.
START_LIMIT_S = 120.0
PACKAGE_PARENT = Path(r1train.__file__).resolve().parents[1]
WORKER_COMMAND = (sys.executable, "-m", "r1train.reward.worker")


@dataclass(frozen=True)
class GradeItem:
    """One answer to grade. entry: {"question", "answer", "metadata"} of the problem, JSON-ready."""

    task: str
    answer: str
    entry: dict[str, Any]


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
        environment = {**os.environ, **threads, "PYTHONPATH": search_path}
        self.process = subprocess.Popen(
            [*command, str(timeout_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.ready = False
        self.started = False
        self.item: int | None = None
        self.deadline = time.monotonic() + START_LIMIT_S
        self.buffer = b""

    def send(self, position: int, item: GradeItem) -> None:
        """Hands over item number `position`; only to an idle worker, which is reading, so the write cannot block."""
        message = {"task": item.task, "answer": item.answer, "entry": item.entry}
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

    processes = 0 grades in this process: only for verifiers that cannot hang.
    """

    def __init__(self, *, processes: int, timeout_s: float, command: Sequence[str] = WORKER_COMMAND):
        self.processes = processes
        self.timeout_s = timeout_s
        self._command = command
        self._workers: list[_Worker] = []

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        """Grades in the order of items. A hung or crashed grader is killed and replaced, its item gets an error.

        Raises DataError for an unknown task, ConfigError for a task that needs a process where there is none.
        """
        if self.processes == 0:
            return [self._grade_here(item) for item in items]
        grades: dict[int, Grade] = {}
        todo = deque(enumerate(items))
        try:
            while len(grades) < len(items):
                self._hand_out(todo, grades)
                self._collect(grades)
        except BaseException:
            self.close()  # workers still hold items of this call: their answers must not reach the next one
            raise
        return [grades[position] for position in range(len(items))]

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

    def _hand_out(self, todo: deque[tuple[int, GradeItem]], grades: dict[int, Grade]) -> None:
        busy = sum(worker.item is not None for worker in self._workers)
        while len(self._workers) < min(self.processes, busy + len(todo)):
            self._workers.append(_Worker(self._command, self.timeout_s))
        for worker in list(self._workers):
            if worker.ready and worker.item is None and todo:
                position, item = todo.popleft()
                try:
                    worker.send(position, item)
                except BrokenPipeError:  # it died while idle: no item is to blame
                    todo.appendleft((position, item))
                    worker.item = None
                    self._discard(worker)

    def _collect(self, grades: dict[int, Grade]) -> None:
        """Waits for the next message or deadline and books what came of it."""
        waiting = [worker for worker in self._workers if worker.item is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in waiting:
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
            pause = min((worker.deadline for worker in waiting), default=time.monotonic()) - time.monotonic()
            arrived = [key.data for key, _ in selector.select(max(pause, 0.0))]
        for worker in arrived:
            messages = worker.receive()
            if messages is None:
                self._give_up(worker, grades, "grader process ended with exit code {code}")
            for message in messages or []:
                self._book(worker, message, grades)
        for worker in waiting:
            if worker in self._workers and worker not in arrived and time.monotonic() >= worker.deadline:
                limit = self.timeout_s if worker.started else START_LIMIT_S
                self._give_up(worker, grades, f"grader timed out after {limit:g} s")

    def _book(self, worker: _Worker, message: dict[str, Any], grades: dict[int, Grade]) -> None:
        if "ready" in message:
            worker.ready = True
        elif "started" in message:
            worker.started = True
            worker.deadline = time.monotonic() + self.timeout_s
        elif "user_error" in message:
            raise DataError(message["user_error"])
        else:
            assert worker.item is not None, message
            grades[worker.item] = Grade(message.get("correct"), message.get("error"))
            worker.item = None

    def _give_up(self, worker: _Worker, grades: dict[int, Grade], reason: str) -> None:
        item = worker.item
        code = self._discard(worker)
        if not worker.ready:
            fix = "run `python -m r1train.reward.worker 1` and read its error"
            raise EnvironmentProblem(f"a grader process did not start (exit code {code}). Fix: {fix}")
        if item is not None:
            grades[item] = Grade(None, reason.format(code=code))

    def _discard(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.kill()
