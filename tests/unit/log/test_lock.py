"""Locks: one holder, who is named; a holder that is killed leaves none behind."""

import os
import socket
import subprocess
import sys

import pytest

from r1train.errors import RunInUse
from r1train.log import lock
from r1train.log.lock import hold

HOLDER = """
import sys, time
from pathlib import Path
from r1train.log.lock import hold
with hold(Path(sys.argv[1]), wait_s=0):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, str(path), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_second_holder_is_refused_and_told_who_holds(tmp_path):
    path = tmp_path / "run" / "x.lock"
    process = holder(path, 60)
    with pytest.raises(RunInUse) as refused, hold(path, wait_s=0):
        raise AssertionError("two holders")
    process.kill()
    process.wait()
    assert str(refused.value).startswith(f"{path} is held by process {process.pid} on {socket.gethostname()} (since 20")
    with hold(path, wait_s=0):  # the kernel released it; the file is still there
        assert f'"pid": {os.getpid()}' in path.read_text()
    with hold(path, wait_s=0):
        assert path.read_text().count("\n") == 1


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path, capsys, monkeypatch):
    path = tmp_path / "x.lock"
    process = holder(path, 60)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        process.kill()
        process.wait()

    monkeypatch.setattr(lock.time, "sleep", pause)
    with hold(path, wait_s=30):
        assert pauses == [0.1]
    assert capsys.readouterr().err.startswith(f"waiting up to 30 s for process {process.pid} on ")


def test_an_error_within_releases(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "x.lock", wait_s=0):
        raise ZeroDivisionError
    with hold(tmp_path / "x.lock", wait_s=0):
        pass


def test_file_systems_without_locks_hold_nothing_back(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(_descriptor, _operation):
        raise OSError(errno.EOPNOTSUPP, "flock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(tmp_path / "x.lock", wait_s=0), hold(tmp_path / "x.lock", wait_s=0):
        pass
