"""One grader process as its parent sees it: what was handed over, what came back, when it is late."""

import contextlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import r1train
from r1train.dist.parent import child_environment

# Longer than any message; a worker that writes without end must not fill this process.
MAX_MESSAGE_BYTES = 1_048_576
PACKAGE_PARENT = Path(r1train.__file__).resolve().parents[1]


class StrayMessage(Exception):
    """A message that no working grader sends."""


class GraderProcess:
    """One grader process. It runs its own interpreter: no fork of a process with threads, no import of our main."""

    def __init__(self, command: Sequence[str], timeout_s: float, *, start_limit_s: float):
        """start_limit_s: for its own start and the import of each verifier, which are not the answer's fault."""
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
        self.start_limit_s = start_limit_s
        self.deadline = time.monotonic() + self.start_limit_s
        self.buffer = b""
        self.token = ""

    def send(self, position: int, item: dict[str, Any]) -> None:
        """Hands over item number `position`; only to an idle worker, which is reading, so the write cannot block.

        item: the fields of a GradeItem. The token is new for each item: a reply without it, forged or late, is not
        taken for this item's.
        """
        self.token = secrets.token_hex(16)
        self.limit_s = self.timeout_s if item["limit_s"] is None else item["limit_s"]
        message = item | {"token": self.token, "limit_s": self.limit_s}
        self.item, self.started = position, False
        self.deadline = time.monotonic() + self.start_limit_s
        self.stdin.write(json.dumps(message).encode() + b"\n")
        self.stdin.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have arrived; None when the process has closed its side, i.e. ended. Raises StrayMessage."""
        data = os.read(self.stdout.fileno(), 65536)
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        if len(self.buffer) > MAX_MESSAGE_BYTES:
            raise StrayMessage(f"more than {MAX_MESSAGE_BYTES} bytes without an end")
        try:
            return [json.loads(line) for line in lines] if data else None
        except (ValueError, RecursionError):
            raise StrayMessage("a line that is no JSON") from None

    def kill(self) -> int:
        """Ends the process and returns its exit code."""
        self.process.kill()
        code = self.process.wait()
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # an item that it never read is still in the buffer
            self.stdin.close()
        return code
