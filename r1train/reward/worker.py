"""A grader process: reads one item per line on stdin, answers on stdout (python -m r1train.reward.worker TIMEOUT_S).

It imports the verifiers and nothing heavy of the project. Messages are JSON lines. Worker: {"ready": true} after
start-up. Parent: {"token", "task", "answer", "entry", "limit_s"}. Worker: {"started": true} once the task's verifier
is imported, then {"correct": x} or {"error": text} or {"user_error": text}, the last for what stops the run (an unknown
task); each with the item's token, without which the parent takes nothing.
"""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from r1train.dist.parent import end_with_parent
from r1train.errors import R1TrainError
from r1train.reward.accuracy import verifier_of, verify

# A verifier that computes 9**9**9 must not take the machine's memory along.
MEMORY_LIMIT_BYTES = 4 * 2**30


def serve(
    grade: Callable[[str, str, dict[str, Any]], float], *, prepare: Callable[[str], object], timeout_s: float
) -> None:
    """Answers items until stdin closes. grade: (task, answer, entry) -> value; prepare: imports what a task needs.

    Whatever a verifier prints goes to stderr, so that it cannot forge an answer. The parent kills a worker that hangs;
    where the parent itself was killed, the kernel ends the worker (Linux), or the alarm does.
    """
    end_with_parent()
    # The soft limit alone: programs in the sandbox, which may have a higher one, inherit the hard limit.
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    logging.disable(logging.ERROR)  # math-verify warns about the time-outs that this process replaces
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _send(channel, {"ready": True})
    for line in sys.stdin:
        item = json.loads(line)
        token = {"token": item["token"]}
        try:
            prepare(item["task"])
            signal.setitimer(signal.ITIMER_REAL, 2 * (item.get("limit_s") or timeout_s) + 1)
            _send(channel, token | {"started": True})
            value, error = grade_one(grade, item["task"], item["answer"], item["entry"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(channel, token | ({"correct": value} if error is None else {"error": error}))
        except R1TrainError as error:
            _send(channel, token | {"user_error": str(error)})


def grade_one(
    grade: Callable[[str, str, dict[str, Any]], float], task: str, answer: str, entry: dict[str, Any]
) -> tuple[float, None] | tuple[None, str]:
    """(value, None), or (None, what went wrong). A user's error (unknown task) is raised."""
    try:
        return float(grade(task, answer, entry)), None
    except R1TrainError:
        raise
    except Exception as error:  # an edge: other people's code, run on whatever a model writes; counted as an error
        return None, f"{type(error).__name__}: {error}"


def _send(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    serve(verify, prepare=verifier_of, timeout_s=float(sys.argv[1]))
