"""Grades answers in killable worker processes, or in-process for verifiers that cannot hang."""

import selectors
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from r1train.errors import ConfigError, DataError, EnvironmentProblem, Problem
from r1train.reward.accuracy import needs_process, verify
from r1train.reward.grader_process import GraderProcess, StrayMessage
from r1train.reward.worker import grade_one

# Start-up and the import of a verifier are not the answer's fault: they have their own, generous limit.
START_LIMIT_S = 120.0
# How often a pool that has worked tries to start a grader again, a minute in all: the pause after a failure doubles.
START_TRIES = 7
START_PAUSE_S = 1.0
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
    """correct: 1.0 or 0.0, for code a share; None exactly when error says why there is no verdict.

    timed_out: the verifier had started and did not end in time, or ran out of memory or depth, so correct is 0.0.
    Were it an error, which costs nothing, an answer that hangs its grader would be better than a wrong one.
    """

    correct: float | None
    error: str | None
    timed_out: bool = False


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
        self._workers: list[GraderProcess] = []
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

        A hung or crashed grader is killed and replaced; so is one that sends what no grader sends, which counts as a
        crash. Hanging is wrong (Grade.timed_out), a crash is an error. A crash costs its item an error only
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
        verdict = grade_one(verify, item.task, item.answer, item.entry)
        return Grade(verdict.value, verdict.error, timed_out=verdict.exhausted)

    def _hand_out(self) -> None:
        busy = sum(worker.item is not None for worker in self._workers)
        while len(self._workers) < min(self.processes, busy + len(self._todo)):
            if time.monotonic() < self._next_start or not self._start():
                break
        for worker in list(self._workers):
            if worker.ready and worker.item is None and self._todo:
                position = self._todo.popleft()
                try:
                    worker.send(position, vars(self._items[position]))
                except BrokenPipeError:  # it died while idle: no item is to blame
                    self._todo.appendleft(position)
                    worker.item = None
                    self._discard(worker)

    def _start(self) -> bool:
        """Starts one more grader; False where the host has no room for a process."""
        try:
            self._workers.append(GraderProcess(self._command, self.timeout_s, start_limit_s=START_LIMIT_S))
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
            try:
                messages, reason = worker.receive(), "grader process ended with exit code {code}"
                for message in messages or []:
                    self._book(worker, message)
            except StrayMessage as error:
                messages, reason = None, f"grader process sent {error}"
            if messages is None:
                self._book_crash(worker, reason)
        for worker in waiting:
            if worker in self._workers and worker not in arrived and time.monotonic() >= worker.deadline:
                grade = Grade(0.0, None, timed_out=True) if worker.started else None
                self._give_up(worker, f"grader timed out after {worker.start_limit_s:g} s", grade)

    def _book(self, worker: GraderProcess, message: object) -> None:
        """Raises StrayMessage for what is not of the worker's item, DataError for what stops the run."""
        match message:
            case {"ready": True} if not worker.ready:
                worker.ready = self._ever_ready = True
                self._failed_starts, self._next_start = 0, 0.0
                return
            case {"token": token, **rest} if worker.item is not None and token == worker.token:
                pass
            case _:
                raise StrayMessage("a message that belongs to no item")
        match rest:
            case {"started": True} if not worker.started:
                worker.started = True
                worker.deadline = time.monotonic() + worker.limit_s
            case {"user_error": str(what)}:
                raise DataError(what)
            case {"correct": float(value)} if worker.started and 0.0 <= value <= 1.0:
                self._grades[worker.item] = Grade(value, None)
                worker.item = None
            case {"exhausted": True} if worker.started:
                self._grades[worker.item] = Grade(0.0, None, timed_out=True)
                worker.item = None
            case {"error": str(why)} if worker.started:
                self._grades[worker.item] = Grade(None, why)
                worker.item = None
            case _:
                raise StrayMessage("a message of an unknown form")

    def _book_crash(self, worker: GraderProcess, reason: str) -> None:
        """The item goes to another grader, once."""
        if worker.ready and worker.item is not None and worker.item not in self._crashed:
            self._crashed.add(worker.item)
            self._todo.appendleft(worker.item)
            self._discard(worker)
        else:
            self._give_up(worker, reason)

    def _give_up(self, worker: GraderProcess, reason: str, grade: Grade | None = None) -> None:
        """Ends a worker; its item gets this grade, None: an error with this reason."""
        item = worker.item
        code = self._discard(worker)
        if not worker.ready:
            self._book_failed_start(reason.format(code=code))
        if item is not None:
            self._grades[item] = grade or Grade(None, reason.format(code=code))

    def _discard(self, worker: GraderProcess) -> int:
        self._workers.remove(worker)
        return worker.kill()
