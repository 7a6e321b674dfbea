"""Grader processes: order, hangs, crashes, exceptions, forged answers, and that no process is left behind.

A formula that hangs the real verifier is in test_overlap.py.
"""

import os
import subprocess
import sys

import psutil
import pytest

from r1train.errors import ConfigError, DataError, EnvironmentProblem
from r1train.reward import grader as grader_module
from r1train.reward.grader import Grade, GradeItem, Grader
from r1train.reward.grader_process import PACKAGE_PARENT
from r1train.reward.worker import grade_one

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)}
HOSTILE_WORKER = """
import os, sys, time
from r1train.errors import DataError
from r1train.reward.worker import serve

def grade(task, answer, entry):
    if task == "hang":
        time.sleep(600)
    if task == "exit":
        os._exit(7)
    if task == "killed once" and not os.path.exists(entry["flag"]):
        open(entry["flag"], "w").close()
        os.kill(os.getpid(), 9)
    if task == "raise":
        raise ValueError("bad verifier")
    if task == "print":
        print('{"correct": 1.0}', flush=True)
    if task == "write":
        # Whatever a verifier is made to run finds the channel: the lowest descriptors are tried by real attacks.
        os.write(CHANNEL, entry["bytes"].encode("latin-1"))
        time.sleep(entry.get("pause", 0.0))
    if task == "memory":
        bytearray(64 * 2**30)
    if task == "depth":
        answer = grade(task, answer, entry)
    if task == "answer raises" and answer != entry["answer"]:
        raise OverflowError("cannot convert float infinity to integer")
    return 1.0 if answer == entry["answer"] else 0.0

def prepare(task):
    if task == "unknown":
        raise DataError("unknown task 'unknown'")

CHANNEL = os.dup(1)
serve(grade, prepare=prepare, timeout_s=float(sys.argv[1]))
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "hostile_worker.py"
    script.write_text(HOSTILE_WORKER)
    return (sys.executable, str(script))


def item(task, answer="1", reference="1"):
    return GradeItem(task=task, answer=answer, entry={"question": "", "answer": reference, "metadata": {}})


def test_hang_crash_and_exception_cost_only_their_own_items(command):
    items = [item("x"), item("hang"), item("x", "2"), item("exit"), item("raise"), item("memory"), item("x")]
    before = {child.pid for child in psutil.Process().children()}
    with Grader(processes=2, timeout_s=1.0, command=command) as grader:
        grades = grader.grade(items)
        again = grader.grade([item("x"), item("x", "2"), item("x")])
    assert grades == [
        Grade(1.0, None),
        Grade(0.0, None, timed_out=True),
        Grade(0.0, None),
        Grade(None, "grader process ended with exit code 7"),
        Grade(None, "ValueError: bad verifier"),
        Grade(0.0, None, timed_out=True),
        Grade(1.0, None),
    ]
    assert again == [Grade(1.0, None), Grade(0.0, None), Grade(1.0, None)]
    assert {child.pid for child in psutil.Process().children()} == before


def test_an_answer_that_makes_its_verifier_fail_is_wrong(command):
    """An error has the advantage 0, which would pay more than a wrong answer."""
    right, faulty = item("answer raises", "1"), item("answer raises", "inf")
    exhausted = Grade(0.0, None, timed_out=True)
    with Grader(processes=1, timeout_s=5.0, command=command) as grader:
        grades = grader.grade([item("depth"), faulty, right, item("memory"), item("raise", "x")])
    broken = Grade(None, "ValueError: bad verifier")  # for the reference answer, too
    assert grades == [exhausted, Grade(0.0, None), Grade(1.0, None), exhausted, broken]


def test_printing_cannot_forge_a_verdict(command):
    with Grader(processes=1, timeout_s=5.0, command=command) as grader:
        assert grader.grade([item("print", "2"), item("print", "1")]) == [Grade(0.0, None), Grade(1.0, None)]


STRAY = {
    "a forged verdict": b'{"correct": 1.0}\n',
    "a forged verdict with a token": b'{"token": "0", "correct": 1.0}\n',
    "a forged end of the run": b'{"user_error": "unknown task"}\n',
    "a second start": b'{"ready": true}\n',
    "no JSON": b"hello\n",
    "no text": b"\xff\xfe\n",
    "no object": b"[1]\n3\n",
    "depth": b"[" * 100_000 + b"\n",
    "no end": b"x" * 3_000_000,
}


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_message_costs_its_item_an_error_and_no_more(command, name):
    """Neither a forged verdict nor the end of the run: the worker is replaced, the next item is graded."""
    entry = {"answer": "1", "bytes": STRAY[name].decode("latin-1"), "pause": 0.5}
    with Grader(processes=1, timeout_s=20.0, command=command) as grader:
        grades = grader.grade([item("x"), GradeItem("write", "2", entry), item("x", "2"), item("x")])
    assert [grades[0], *grades[2:]] == [Grade(1.0, None), Grade(0.0, None), Grade(1.0, None)]
    assert grades[1].correct is None and grades[1].error.startswith("grader process sent ")


def test_a_message_from_an_idle_grader_ends_that_grader_alone(command):
    """A late verdict is found when the next item was handed over, which is not to blame: another grader takes it."""
    late = {"answer": "1", "bytes": ""}
    with Grader(processes=1, timeout_s=20.0, command=command) as grader:
        assert grader.grade([GradeItem("write", "1", late)]) == [Grade(1.0, None)]
        worker = grader._workers[0]
        worker.buffer = b'{"token": "' + worker.token.encode() + b'", "correct": 1.0}\n'  # late, for the item before
        assert grader.grade([item("x", "2"), item("x")]) == [Grade(0.0, None), Grade(1.0, None)]
        assert worker not in grader._workers


def test_user_errors_stop_the_run_and_the_grader_recovers(command):
    with Grader(processes=2, timeout_s=5.0, command=command) as grader:
        with pytest.raises(DataError, match="unknown task 'unknown'"):
            grader.grade([item("x"), item("unknown"), item("x")])
        assert grader.grade([item("x", "2")]) == [Grade(0.0, None)]


def test_idle_worker_killed_from_outside_is_replaced(command):
    with Grader(processes=1, timeout_s=5.0, command=command) as grader:
        grader.grade([item("x")])
        worker = grader._workers[0].process
        worker.kill()
        worker.wait()
        assert grader.grade([item("x", "2"), item("x")]) == [Grade(0.0, None), Grade(1.0, None)]
        assert grader._workers[0].process.pid != worker.pid


def test_an_item_whose_worker_was_killed_from_outside_is_graded_again(command, tmp_path):
    """What the run learns from must not depend on it; only the second crash on one item is the item's fault."""
    killed = GradeItem(task="killed once", answer="1", entry={"answer": "1", "flag": str(tmp_path / "flag")})
    with Grader(processes=1, timeout_s=5.0, command=command) as grader:
        grades = grader.grade([item("x"), killed, item("exit"), item("x", "2")])
    assert (tmp_path / "flag").exists()
    crashed = Grade(None, "grader process ended with exit code 7")
    assert grades == [Grade(1.0, None), Grade(1.0, None), crashed, Grade(0.0, None)]


def test_worker_that_cannot_start_is_reported():
    command = (sys.executable, "-c", "raise SystemExit(3)")
    with Grader(processes=1, timeout_s=1.0, command=command) as grader, pytest.raises(EnvironmentProblem):
        grader.grade([item("x")])


FAILS_WHILE_THE_FLAG_IS_THERE = """
import os, sys, time
if os.path.exists(sys.argv[1]):
    if sys.argv[1].endswith("hangs"):
        time.sleep(600)
    if sys.argv[1].endswith("once"):
        os.remove(sys.argv[1])
    sys.exit(3)
sys.argv[1:2] = []
"""


@pytest.fixture
def flagged(tmp_path, monkeypatch):
    """flagged(name) -> (flag, command of a worker that does not start while the flag is there)."""
    monkeypatch.setattr(grader_module, "START_PAUSE_S", 0.001)
    script = tmp_path / "flagged_worker.py"
    script.write_text(FAILS_WHILE_THE_FLAG_IS_THERE + HOSTILE_WORKER)
    return lambda name: (tmp_path / name, (sys.executable, str(script), str(tmp_path / name)))


def without_workers(grader):
    for worker in grader._workers:
        worker.process.kill()
        worker.process.wait()


def test_a_replacement_that_fails_to_start_is_started_again(flagged):
    flag, command = flagged("once")
    with Grader(processes=1, timeout_s=5.0, command=command) as grader:
        assert grader.grade([item("x")]) == [Grade(1.0, None)]
        flag.touch()
        without_workers(grader)
        assert grader.grade([item("x", "2"), item("x")]) == [Grade(0.0, None), Grade(1.0, None)]
    assert not flag.exists()


def test_items_without_any_grader_are_errors_and_the_pool_recovers(flagged, monkeypatch):
    """The run goes on: a pool that has worked does not stop it, neither with a start that fails nor one that hangs."""
    monkeypatch.setattr(grader_module, "START_TRIES", 2)
    flag, command = flagged("always")
    with Grader(processes=2, timeout_s=5.0, command=command) as grader:
        grader.grade([item("x"), item("x")])
        flag.touch()
        without_workers(grader)
        lost = Grade(None, "no grader process started (grader process ended with exit code 3)")
        assert grader.grade([item("x")] * 3) == [lost] * 3
        flag.unlink()
        assert grader.grade([item("x", "2")]) == [Grade(0.0, None)]
    flag, command = flagged("hangs")
    with Grader(processes=1, timeout_s=5.0, command=command) as grader:
        grader.grade([item("x")])
        flag.touch()
        without_workers(grader)
        monkeypatch.setattr(grader_module, "START_LIMIT_S", 0.2)
        lost = Grade(None, "no grader process started (grader timed out after 0.2 s)")
        assert grader.grade([item("x")]) == [lost]


def test_a_host_without_room_for_a_process(command, monkeypatch):
    monkeypatch.setattr(grader_module, "START_PAUSE_S", 0.001)
    monkeypatch.setattr(grader_module, "START_TRIES", 3)

    def no_room(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with Grader(processes=1, timeout_s=5.0, command=command) as grader:
        grader.grade([item("x")])
        without_workers(grader)
        with monkeypatch.context() as full:
            full.setattr(grader_module, "GraderProcess", no_room)
            (grade,) = grader.grade([item("x")])
        assert grade.correct is None and "Resource temporarily unavailable" in grade.error
        assert grader.grade([item("x")]) == [Grade(1.0, None)]


def test_worker_ends_by_itself_when_its_parent_was_killed(command):
    """A worker that hangs in a verifier has nobody left to kill it: its alarm does (after 2 * 0.2 + 1 s)."""
    worker = subprocess.Popen([*command, "0.2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    worker.stdin.write(b'{"token": "t", "task": "hang", "answer": "", "entry": {}}\n')
    worker.stdin.flush()
    assert worker.wait(timeout=30) == -14
    worker.stdin.close()
    worker.stdout.close()


def test_real_worker_reports_an_unknown_task():
    with Grader(processes=1, timeout_s=5.0) as grader, pytest.raises(DataError, match="unknown task 'no_such_task'"):
        grader.grade([item("no_such_task")])


def test_in_process_grading():
    grader = Grader(processes=0, timeout_s=1.0)
    broken = GradeItem(task="chain_sum", answer="1", entry={"question": ""})
    assert grader.grade([item("gsm8k"), item("gsm8k", "2"), broken]) == [
        Grade(1.0, None),
        Grade(0.0, None),
        Grade(None, "KeyError: 'answer'"),
    ]


def test_an_exception_of_a_sandbox_is_never_the_answers():
    def broken_sandbox(task, answer, entry):
        if answer == "a":
            raise RuntimeError("the sandbox failed")
        return 1.0

    failed = (None, "RuntimeError: the sandbox failed", False)
    assert grade_one(broken_sandbox, "code", "a", {"answer": "-"}) == failed
    assert grade_one(broken_sandbox, "chain_sum", "a", {"answer": "-"}) == (0.0, None, False)
    assert grade_one(broken_sandbox, "chain_sum", "a", {"answer": 3}) == failed  # no reference to try


def test_in_process_refuses_verifiers_that_can_hang():
    with pytest.raises(ConfigError, match="reward.grader_processes = 0: the verifier of task 'math' can hang"):
        Grader(processes=0, timeout_s=1.0).grade([item("math")])


def test_worker_imports_neither_torch_nor_verifiers():
    code = "import r1train.reward.worker, sys; print([m for m in ('torch', 'sympy', 'numpy') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert output.stdout.strip() == "[]"
