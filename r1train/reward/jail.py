"""Runs programs in the sandbox: limits, wall clock, memory of the whole process tree, and what came of each."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from r1train.reward.isolation import Backend, Isolation, choose, python_views, require_isolation
from r1train.reward.jail_job import LIBRARY_PATH, PYTHON, Job, Limits, files_to_hand_over, sealed, start_command

MOUNT_POINT = "/proc"  # exists everywhere, and nothing below it is shown to programs; hidden for the sandbox alone
SETUP_LIMIT_S = 20.0  # building the sandbox is not the program's fault
TICK_S = 0.02  # how often time and memory are looked at
STDERR_BYTES = 65_536
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Outcome = Literal["ok", "exit", "signal", "time", "memory", "output", "stopped", "setup"]


@dataclass(frozen=True)
class Ended:
    """How a program ended. outcome "setup": the sandbox failed, not the program; detail says why.

    "ok": exit code 0; "stopped": ended because the program that it belongs to had ended.
    """

    outcome: Outcome
    detail: str
    stdout: bytes
    stderr: bytes
    wall_s: float


class Running:
    """One program in its sandbox. stdin, stdout: pipe ends that it uses instead of job.stdin and captured output."""

    def __init__(self, job: Job, *, backend: Backend, base: str, stdin: int | None = None, stdout: int | None = None):
        self.limits = job.limits
        self.begun = time.monotonic()
        self.deadline = self.begun + SETUP_LIMIT_S
        self.running = False  # the program itself, after its sandbox was built
        self.open = True
        self.outcome: Outcome | None = None
        self.detail = ""
        status_read, status_write = os.pipe()
        feed = sealed(job.stdin) if stdin is None else os.dup(stdin)
        handed = files_to_hand_over(job, backend=backend, base=base)
        self.process = subprocess.Popen(
            start_command(job, backend=backend, status=status_write, handed=handed),
            stdin=feed,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            env=LIBRARY_PATH,
            pass_fds=(status_write, *handed),
        )
        for number in (feed, status_write, *handed):
            os.close(number)
        self.status: IO[bytes] = os.fdopen(status_read, "rb", buffering=0)
        self.captured: dict[IO[bytes], bytearray] = {}
        self.caps = {self.process.stdout: job.limits.output_bytes, self.process.stderr: STDERR_BYTES}
        for pipe in filter(None, (self.process.stdout, self.process.stderr)):
            os.set_blocking(pipe.fileno(), False)
            self.captured[pipe] = bytearray()
        self._lines = b""

    def read_status(self) -> None:
        """Takes in what the sandbox says. When it has closed its side, nothing in it lives any more: the end."""
        data = self.status.read(65536) or b""
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self._book(json.loads(line))
        self.open = bool(data)

    def _book(self, message: dict[str, object]) -> None:
        if "started" in message or "child-pid" in message:
            self.running, self.begun = True, time.monotonic()
            self.deadline = self.begun + self.limits.wall_s
        elif "setup_error" in message:
            self._settle("setup", str(message["setup_error"]))
        else:
            code = message["code"] if "code" in message else message["exit-code"]
            assert isinstance(code, int), message
            if "exit-code" in message and code > 128:  # bubblewrap's way to tell a signal
                code = 128 - code
            if code == -signal.SIGXCPU:
                self._settle("time", f"used more than {self.limits.cpu_s:g} s of CPU")
            elif code < 0:
                self._settle("signal", signal.Signals(-code).name)
            else:
                self._settle("exit" if code else "ok", f"exit code {code}")

    def read_pipe(self, pipe: IO[bytes]) -> bool:
        """Takes in output; False when there is none, for now or for ever. A program that writes too much is killed."""
        try:
            data = os.read(pipe.fileno(), 65536)
        except BlockingIOError:
            return False
        stream, cap = self.captured[pipe], self.caps[pipe]
        stream += data
        if len(stream) > cap:
            del stream[cap:]
            self.kill("output", f"wrote more than {cap} bytes")
            return False
        return bool(data)

    def check_limits(self) -> None:
        """Kills a program that is over its time, or whose processes together are over their memory."""
        if time.monotonic() >= self.deadline:
            if self.running:
                self.kill("time", f"ran longer than {self.limits.wall_s:g} s")
            else:
                self.kill("setup", f"the sandbox was not ready after {SETUP_LIMIT_S:g} s")
        elif self.running and sum(map(_resident_bytes, process_tree(self.process.pid))) > self.limits.memory_bytes:
            self.kill("memory", f"held more than {self.limits.memory_bytes} bytes")

    def kill(self, outcome: Outcome, detail: str) -> None:
        """Ends everything in the sandbox."""
        self._settle(outcome, detail)
        launcher, *inside = process_tree(self.process.pid)
        for pid in inside or [launcher]:  # the launcher ends by itself, once it has seen that all the others have
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> Ended:
        """What came of it; once the status is closed."""
        wall_s = time.monotonic() - self.begun
        for pipe in self.captured:
            while self.read_pipe(pipe):
                pass
        exit_code = self.process.wait()
        stdout, stderr = (
            bytes(self.captured[pipe]) if pipe else b"" for pipe in (self.process.stdout, self.process.stderr)
        )
        for pipe in (*self.captured, self.status):
            pipe.close()
        if self.outcome is None:
            last_words = stderr.decode(errors="replace").strip()[-500:]
            self._settle("setup", f"the sandbox ended without a result (exit code {exit_code}): {last_words}")
        assert self.outcome is not None
        return Ended(self.outcome, self.detail, stdout, stderr, wall_s)

    def _settle(self, outcome: Outcome, detail: str) -> None:
        if self.outcome is None:  # the first reason stays
            self.outcome, self.detail = outcome, detail


class Jail:
    """The sandbox of this process. Programs run one after another, or in pairs.

    Raises EnvironmentProblem where the host offers no isolation, unless allow_unisolated.
    """

    def __init__(self, *, allow_unisolated: bool):
        found = probe()
        require_isolation(found, allow_unisolated=allow_unisolated)
        self.backend: Backend = found.backend

    def run(self, job: Job) -> Ended:
        """Runs one program to its end."""
        with _base(self.backend) as base:
            return _finish([Running(job, backend=self.backend, base=base)])[0]

    def run_pair(self, leader: Job, follower: Job) -> tuple[Ended, Ended]:
        """Runs two programs, each with the other's stdout as its stdin; the follower is ended when the leader ends."""
        to_leader, to_follower = os.pipe(), os.pipe()
        runs: list[Running] = []
        with _base(self.backend) as first, _base(self.backend) as second:
            try:
                runs.append(_joined(leader, self.backend, first, stdin=to_leader[0], stdout=to_follower[1]))
                runs.append(_joined(follower, self.backend, second, stdin=to_follower[0], stdout=to_leader[1]))
            finally:
                for number in (*to_leader, *to_follower):
                    os.close(number)
            one, other = _finish(runs)
        return one, other


def process_tree(pid: int) -> list[int]:
    """pid and every process below it, from the top; processes that end meanwhile are left out."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        found.append(parent)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                todo += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found


@cache
def probe() -> Isolation:
    """Tries the host's isolation with one small program each (about 0.1 s); the result is kept."""
    return choose(_attempt)


def _attempt(backend: Backend) -> str | None:
    limits = Limits(cpu_s=10.0, wall_s=20.0, memory_bytes=2**29, scratch_bytes=2**20, output_bytes=4096, processes=4)
    code = "import os; print(os.listdir('/scratch'), os.path.exists('/proc/1'), os.path.exists('/home'))"
    job = Job((*PYTHON, "-c", code), limits, python_views(), {"a": b""})
    try:
        (ended,) = _finish([Running(job, backend=backend, base=MOUNT_POINT)])
    except OSError as error:  # the tool itself cannot be started
        return str(error)
    if ended.outcome == "ok" and ended.stdout == b"['a'] False False\n":
        return None
    return f"{ended.outcome}: {ended.detail} {ended.stdout.decode()}{ended.stderr.decode()}".strip()


@contextlib.contextmanager
def _base(backend: Backend) -> Iterator[str]:
    """Where the sandbox is built. Without isolation: a folder of the host, for this program alone."""
    if backend != "none":
        yield MOUNT_POINT
        return
    with tempfile.TemporaryDirectory(prefix="r1train-unisolated-", ignore_cleanup_errors=True) as folder:
        yield folder


def _joined(job: Job, backend: Backend, base: str, *, stdin: int, stdout: int) -> Running:
    return Running(job, backend=backend, base=base, stdin=stdin, stdout=stdout)


def _finish(runs: list[Running]) -> list[Ended]:
    """Runs them to their ends; the others end when the first has."""
    try:
        with selectors.DefaultSelector() as selector:
            for run in runs:
                selector.register(run.status, selectors.EVENT_READ, (run, None))
                for pipe in run.captured:
                    selector.register(pipe, selectors.EVENT_READ, (run, pipe))
            while any(run.open for run in runs):
                for key, _ in selector.select(TICK_S):
                    run, pipe = key.data
                    if pipe is None:
                        run.read_status()
                    elif not run.read_pipe(pipe):
                        selector.unregister(pipe)
                    if pipe is None and not run.open:
                        selector.unregister(run.status)
                for run in runs:
                    if run.open and run is not runs[0] and not runs[0].open:
                        run.kill("stopped", "the program it belongs to ended")
                    elif run.open:
                        run.check_limits()
    except BaseException:
        for run in runs:
            run.kill("stopped", "interrupted")
        raise
    return [run.close() for run in runs]


def _resident_bytes(pid: int) -> int:
    """Resident memory, 0 for a process that has ended. Pages that several processes share count once for each."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0
