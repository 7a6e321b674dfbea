"""Ranks forked from a warm server: torchrun's variables, output and exit codes, and no rank outlives a failed one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from r1train.dist import warm
from r1train.dist.warm import RunningRanks, WarmRanks

PRELOADED = "import os\nPID = os.getpid()\n"
RANK = """
import os, sys, time
import preloaded_by_server
from r1train.dist.parent import end_with_parent
end_with_parent()
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
print(*[os.environ[name] for name in names], preloaded_by_server.PID == os.getppid(), sys.argv[1:], flush=True)
print("from the server" if os.environ["SET_AT_START"] == "yes" else "", file=sys.stderr, flush=True)
mode = sys.argv[1]
if mode == "wait" or (mode == "fail" and os.environ["RANK"] == "0"):
    time.sleep(300)
if mode == "fail":
    sys.exit(7)
"""

STARTER = """
import sys, time
from r1train.dist.warm import WarmRanks
running = WarmRanks("preloaded_by_server", {"SET_AT_START": "yes"}).start("forked_rank", ["wait"], world_size=2)
print(*[process.pid for process in running._processes])
for line in running.lines():
    print(line, end="", flush=True)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "preloaded_by_server.py").write_text(PRELOADED)
    (folder / "forked_rank.py").write_text(RANK)
    path = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(folder))
    search_path = os.pathsep.join(filter(None, [str(folder), path]))
    yield WarmRanks("preloaded_by_server", {"PYTHONPATH": search_path, "SET_AT_START": "yes"})
    sys.path.remove(str(folder))


@pytest.fixture
def start(ranks: WarmRanks) -> Callable[[str], RunningRanks]:
    return lambda mode: ranks.start("forked_rank", [mode, "x=1"], world_size=2)


def test_ranks_are_forks_with_torchruns_variables(start):
    running = start("end")
    lines = sorted(running.lines())
    assert running.wait() == 0
    assert lines == [
        "0 0 2 2 127.0.0.1 True ['end', 'x=1']\n",
        "1 1 2 2 127.0.0.1 True ['end', 'x=1']\n",
        "from the server\n",
        "from the server\n",
    ]
    assert "SET_AT_START" not in os.environ


def test_a_rank_that_fails_ends_the_others(start, monkeypatch):
    monkeypatch.setattr(warm, "GRACE_S", 0.2)
    began = time.monotonic()
    running = start("fail")
    assert len(list(running.lines())) == 4
    assert running.wait() in (7, -signal.SIGKILL) and time.monotonic() - began < 60


def test_stop_ends_every_rank(start):
    running = start("wait")
    assert next(running.lines()).startswith(("0 0", "1 1", "from"))
    pids = [process.pid for process in running._processes]
    running.stop()
    assert running.wait() == -signal.SIGTERM
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_silent_ranks_end_with_a_starter_that_is_killed(ranks: WarmRanks):
    """Nothing breaks their output, and they hold the pipe that tells Python's fork server of its starter's end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STARTER]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    pids = [int(pid) for pid in starter.stdout.readline().split()]
    printed = [starter.stdout.readline() for _ in range(4)]
    assert len(pids) == 2 and sum(line.startswith(("0 0", "1 1")) for line in printed) == 2
    family = psutil.Process(starter.pid).children(recursive=True)
    assert set(pids) < {process.pid for process in family}
    starter.kill()
    assert psutil.wait_procs(family, timeout=60)[1] == []
    starter.wait()
    starter.stdout.close()
