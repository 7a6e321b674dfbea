"""A grader process: reads one item per line on stdin, answers on stdout (python -m r1train.reward.worker TIMEOUT_S).

It imports the verifiers and nothing heavy of the project. Messages are JSON lines. Worker: {"ready": true} after
start-up. Parent: {"token", "task", "answer", "entry", "limit_s"}. Worker: {"started": true} once the task's verifier
is imported, then {"correct": x} or {"exhausted": true} (no memory or no depth left) or {"error": text} or
{"user_error": text}, the last for what stops the run (an unknown task); each with the item's token, without which the
parent takes nothing.
"""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from r1train.dist.parent import end_with_parent
from r1train.errors import R1TrainError
from r1train.reward.accuracy import CODE_TASKS, verifier_of, verify

# A verifier that computes 9**9**9 must not take the machine's memory along.
MEMORY_LIMIT_BYTES = 4 * 2**30

Grading = Callable[[str, str, dict[str, Any]], float]


class Verdict(NamedTuple):
    """As Grade (grader.py). exhausted: the verifier ran out of memory or depth, so the answer is wrong (value 0.0)."""

    value: float | None
    error: str | None
    exhausted: bool = False


def serve(grade: Grading, *, prepare: Callable[[str], object], timeout_s: float) -> None:
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
            verdict = grade_one(grade, item["task"], item["answer"], item["entry"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(channel, token | _message(verdict))
        except R1TrainError as error:
            _send(channel, token | {"user_error": str(error)})


def grade_one(grade: Grading, task: str, answer: str, entry: dict[str, Any]) -> Verdict:
    """The verdict on one answer; a user's error (unknown task) is raised.

    An answer that makes its verifier fail is wrong: were it an error, whose advantage is 0, that would pay more than
    a wrong answer. Out of memory or depth: as out of time. Any other exception is the answer's fault where the
    problem's reference answer is graded without one, else the problem's or the verifier's: an error.
    """
    try:
        return Verdict(float(grade(task, answer, entry)), None)
    except R1TrainError:
        raise
    except (MemoryError, RecursionError):
        return Verdict(0.0, None, exhausted=True)
    except Exception as error:  # an edge: other people's code, run on whatever a model writes
        if _takes_reference(grade, task, entry):
            return Verdict(0.0, None)
        return Verdict(None, f"{type(error).__name__}: {error}")


def _takes_reference(grade: Grading, task: str, entry: dict[str, Any]) -> bool:
    """Whether the reference answer of a problem is graded without an exception, whatever its value."""
    reference = entry.get("answer")
    # Code is run by our own sandbox, whose failures are never the answer's; its problems have no reference program.
    if task in CODE_TASKS or not isinstance(reference, str):
        return False
    try:
        grade(task, reference, entry)
    except Exception:  # the same edge: it fails on this problem, whatever the answer
        return False
    return True


def _message(verdict: Verdict) -> dict[str, Any]:
    if verdict.exhausted:
        return {"exhausted": True}
    return {"correct": verdict.value} if verdict.error is None else {"error": verdict.error}


def _send(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    serve(verify, prepare=verifier_of, timeout_s=float(sys.argv[1]))
