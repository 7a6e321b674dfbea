"""A child ends with its parent, however the parent ends, and only where it was asked to."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

CHILD = """
import os, time
from r1train.dist.parent import end_with_parent
end_with_parent()
assert "R1TRAIN_PARENT_PID" not in os.environ  # or a grandchild would take it for its own
print("bound", os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
from r1train.dist.parent import child_environment
env = child_environment() if sys.argv[2] == "asked" else None
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=env)
time.sleep(60)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")


def pair(how: str, **env: str) -> tuple[subprocess.Popen, psutil.Process]:
    """A parent and its child, which is past end_with_parent()."""
    command = [sys.executable, "-c", PARENT, CHILD, how]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    return parent, psutil.Process(int(parent.stdout.readline().split()[1]))


def ended(process: psutil.Process, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@linux
@pytest.mark.parametrize(("how", "env"), [("asked", {}), ("not", {"TORCHELASTIC_RUN_ID": "x"})])
def test_child_of_a_killed_parent_is_killed(how, env):
    """Started with child_environment(), or below any torchrun."""
    parent, child = pair(how, **env)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ended(child, 50)


def test_child_that_was_not_asked_stays():
    parent, child = pair("not")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert not ended(child, 0.5)
    child.kill()


@linux
def test_child_that_starts_after_its_parents_end_is_killed_at_once():
    """Its parent is not the process that it was told."""
    other = subprocess.run([sys.executable, "-c", CHILD], env={**os.environ, "R1TRAIN_PARENT_PID": "1"}, check=False)
    assert other.returncode == -signal.SIGKILL
