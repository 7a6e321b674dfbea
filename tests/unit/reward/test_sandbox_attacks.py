"""Attacks on the code sandbox: all contained, all scored as failures, none in the way of the next sample."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import psutil
import pytest

from r1train.config.schema_reward import CodeConfig
from r1train.reward.code import code_score
from r1train.reward.grader import Grade, GradeItem, Grader
from r1train.reward.grader_process import PACKAGE_PARENT
from r1train.reward.isolation import python_views
from r1train.reward.jail import Jail, probe, process_tree
from r1train.reward.jail_job import PYTHON, Job, Limits

pytestmark = pytest.mark.skipif(probe().backend == "none", reason=f"no isolation on this host: {probe().note}")

LIMITS = Limits(cpu_s=1.0, wall_s=3.0, memory_bytes=2**28, scratch_bytes=2**22, output_bytes=2**16, processes=8)
CFG = CodeConfig(time_s=1.0, memory_bytes=2**28, scratch_bytes=2**22, output_bytes=2**16, processes=8)
SUM_TESTS = [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 6\n", "stdout": "11\n"}]
RIGHT = "print(sum(map(int, input().split())))"

# name -> (program, how it must end, what it must have printed)
ATTACKS = {
    "fork bomb": ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", {"time"}, b""),
    "10 GB at once": ("x = bytearray(10 * 2**30)", {"exit"}, b""),
    "10 GB in children": (
        "import os, time\nfor _ in range(6):\n if os.fork() == 0: x = bytearray(b'x') * 150_000_000; time.sleep(60)\n"
        "time.sleep(60)",
        {"memory"},
        b"",
    ),
    "10 GB in shared memory": (
        "import mmap, time\nfor _ in range(100):\n m = mmap.mmap(-1, 2**27); m.write(b'x' * 2**27); m.close()\n"
        "import os\nos.memfd_create('x')",
        {"exit", "memory"},
        b"",
    ),
    "fill the disk": (
        "total = 0\ntry:\n for i in range(10**6):\n"
        "  with open(str(i), 'wb') as f: total += f.write(b'x' * 2**20)\n"
        "except OSError as e: print(e.errno, total <= 2**22, flush=True)\nopen('/usr/lib/x', 'w')",
        {"exit"},
        b"28 True\n",
    ),
    "many files": ("for i in range(10**7): open(str(i), 'w').close()", {"exit", "time"}, b""),
    "read /etc/passwd": ("print(open('/etc/passwd').read())", {"exit"}, b""),
    "read this repository": (f"print(open({__file__!r}).read())", {"exit"}, b""),
    "read another's environment": ("print(open('/proc/1/environ', 'rb').read())", {"exit"}, b""),
    "read its own environment": (
        "import os\nwanted = 'HOME LANG LD_LIBRARY_PATH PATH PYTHONHASHSEED TMPDIR'\n"
        "print(set(os.environ) - {'PWD'} == set(wanted.split()))",
        {"ok"},
        b"True\n",
    ),
    "symlink out": ("import os\nos.symlink('/etc/passwd', 'x')\nprint(open('x').read())", {"exit"}, b""),
    "symlink up": (
        "import os\nos.symlink('../../../../..', 'x')\nprint('etc/passwd', os.path.exists('x/etc/passwd'))",
        {"ok"},
        b"etc/passwd False\n",
    ),
    # PORT: one that this host listens at, and lets in whoever is not in the sandbox.
    "open an internet socket": ("import socket\nsocket.create_connection(('127.0.0.1', PORT))", {"exit"}, b""),
    "send a datagram": (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', ('127.0.0.1', PORT))",
        {"exit"},
        b"",
    ),
    "open a socket to the hypervisor": ("import socket\nsocket.socket(40, socket.SOCK_STREAM)", {"exit"}, b""),
    "open a raw socket": ("import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)", {"exit"}, b""),
    "new name spaces": ("import os\nos.unshare(os.CLONE_NEWUSER)", {"exit"}, b""),
    "mount": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.mount(b'none', b'/scratch', b'tmpfs', 0, None), ctypes.get_errno())",
        {"ok"},
        b"-1 1\n",
    ),
    "become root": ("import os\nos.setuid(0)", {"exit"}, b""),
    "infinite loop": ("while True: pass", {"time"}, b""),
    "ignore the CPU limit": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        {"time", "signal"},
        b"",
    ),
    "sleep": ("import time\ntime.sleep(600)", {"time"}, b""),
    "output flood": ("while True: print('x' * 10**6)", {"output"}, b"x" * 2**16),
    "error flood": ("import os\nwhile True: os.write(2, b'x' * 10**6)", {"output"}, b""),
    "kill the parent": ("import os\nos.kill(os.getppid(), 9)\nos.kill(1, 9)\nprint('alive')", {"ok"}, b"alive\n"),
    "interrupt the parent": ("import os\nfor s in range(1, 32): os.kill(1, s)\nprint('alive')", {"ok"}, b"alive\n"),
    "kill the group": ("import os\nos.kill(0, 9)", {"signal"}, b""),
    "kill everybody": ("import os\nos.fork() and os.kill(-1, 9)\nprint('alive')", {"ok"}, b"alive\n"),
    "survive as a daemon": (
        "import os, signal, time\nif os.fork() == 0:\n os.setsid()\n"
        " for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n"
        " if os.fork() == 0: time.sleep(600)\n os._exit(0)\nos.wait()\nprint('gone')",
        {"ok"},
        b"gone\n",
    ),
    "trace the first process": ("import ctypes\nprint(ctypes.CDLL(None).ptrace(16, 1, 0, 0))", {"ok"}, b"-1\n"),
    "report for the sandbox": (
        "import os\nfor n in range(3, 64):\n try: os.write(n, b'{\"code\": 0}\\n')\n except OSError: pass\nos._exit(3)",
        {"exit"},
        b"",
    ),
}


def marked(mark):
    """Processes of this host with a command line that holds mark; a forked process keeps it."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No launcher or other child survives an attack."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.fixture
def port() -> Iterator[int]:
    """A TCP port of this host that takes connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        found = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", found), timeout=5.0).close()
        yield found


def seconds_of_a_right_answer(jail: Jail) -> float:
    started = time.monotonic()
    ended = jail.run(Job((*PYTHON, "-c", RIGHT), LIMITS, python_views(), stdin=b"1 2\n"))
    assert (ended.outcome, ended.stdout) == ("ok", b"3\n"), ended
    return time.monotonic() - started


def attacked(jail: Jail, name: str, port: int) -> bool:
    """See it fail. Whether it ended in time and the next sample did not wait: on a busy host anything may be late."""
    program, ends, printed = ATTACKS[name]
    undisturbed = seconds_of_a_right_answer(jail)
    mark = f"attack-{uuid.uuid4()}"
    ended = jail.run(Job((*PYTHON, "-c", program.replace("PORT", str(port)), mark), LIMITS, python_views()))
    finished = time.monotonic()
    assert ended.outcome in ends, ended
    assert ended.stdout == printed, ended
    while marked(mark) and time.monotonic() < finished + 60.0:  # bubblewrap reports a little before its end
        time.sleep(0.02)
    assert marked(mark) == []
    # What an attack could make the next sample wait for is its own limit of 3 s, or something that goes on running.
    return seconds_of_a_right_answer(jail) < 2 * undisturbed + 1.5 and ended.wall_s < 15.0


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_contained_and_fails(name, monkeypatch, port):
    monkeypatch.setenv("R1TRAIN_TEST_SECRET", "secret")
    program, ends, _ = ATTACKS[name]
    jail = Jail(allow_unisolated=False)
    assert any(attacked(jail, name, port) for _ in range(5)), "late every time: not the host's doing"
    if ends & {"ok", "exit"}:  # the others would take their time once more
        assert code_score(program, {"metadata": {"tests": SUM_TESTS}}, CFG) == 0.0


SNIPPETS = [{"snippet": "assert add(1, 2) == 3"}, {"snippet": "assert abs(add(5, 6) - 11) < 1e-6"}]
ALWAYS = "__eq__ = __lt__ = __le__ = lambda *a: True\n __sub__ = __abs__ = __hash__ = lambda s, *a: s"
FORGERIES = {
    "a result that equals everything": f"class All:\n {ALWAYS}\ndef add(a, b): return All()",
    "a number that equals everything": f"class All(int):\n {ALWAYS}\ndef add(a, b): return All()",
    "a list that equals everything": "class All(list):\n __eq__ = lambda *a: True\ndef add(a, b): return All()",
    "exit 0": "import sys\nsys.exit(0)",
    "_exit 0": "import os\nos._exit(0)",
    "_exit in the call": "import os\ndef add(a, b): os._exit(0)",
    "exit in the call": "def add(a, b): raise SystemExit(0)",
    "at exit": "import atexit, os\natexit.register(lambda: os.write(2, b'pass'))\natexit.register(lambda: os._exit(0))",
    "prints the verdict": (
        "import os\nfor n in range(64):\n try: os.write(n, b'pass')\n except OSError: pass\nos._exit(0)"
    ),
    "shadows what the test uses": "def abs(x): return 0\ndef add(a, b): return 3",
    "patches the built-in functions": "import builtins\nbuiltins.abs = lambda x: 0\ndef add(a, b): return 3",
    "patches the other side's module": (
        "import code_judge\ncode_judge.judge = lambda *a: True\ncode_judge.main = lambda: None\n"
        "code_judge.encode = lambda v: 3\ndef add(a, b): return 3"
    ),
    "answers before it is asked": (
        "import os\nfor n in range(3, 64):\n try: os.write(n, b'{\"value\": 3}\\n' * 100)\n except OSError: pass\n"
        "def add(a, b): return 3"
    ),
    "replies with code": "import os\ndef add(a, b):\n os.write(3, b'__import__(\"os\")._exit(0)\\n')",
    "raises what the test raises": "def add(a, b): raise AssertionError",
    "stops iteration": "def add(a, b): raise StopIteration",
    "looks for the test": "import glob\nfor f in glob.glob('/scratch/test*'): x = open(f).read()\nadd = lambda a, b: 3",
    "returns without end": "def add(a, b): return 'x' * 10**8",
    "returns something deep": "def add(a, b):\n x = []\n for _ in range(10**5): x = [x]\n return x",
    "hangs": "def add(a, b):\n while True: pass",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_verdict_cannot_be_forged(name):
    assert code_score(FORGERIES[name], {"metadata": {"tests": SNIPPETS}}, CFG) == 0.0


def test_right_functions_pass_the_same_tests():
    assert code_score("def add(a, b): return a + b", {"metadata": {"tests": SNIPPETS}}, CFG) == 1.0


def test_graders_live_on_and_no_attack_is_an_error():
    """Through the whole way of a run: failures are zeros, not errors, and the next answer is graded."""
    entry = {"question": "", "answer": "", "metadata": {"tests": SUM_TESTS}, "code": vars(CFG)}
    names = ["kill the parent", "kill the group", "interrupt the parent", "10 GB at once", "survive as a daemon"]
    programs = [part for name in names for part in (ATTACKS[name][0], RIGHT)]
    with Grader(processes=1, timeout_s=5.0) as grader:
        grades = grader.grade([GradeItem("code", program, entry, limit_s=60.0) for program in programs])
        assert grades == [Grade(0.0, None), Grade(1.0, None)] * len(names)


def test_programs_end_with_a_killed_grader():
    """SIGKILL of the process that runs the sandbox ends everything in it."""
    lines = [
        "from r1train.reward.jail import *",
        "from r1train.reward.isolation import python_views",
        "limits = Limits(60.0, 60.0, 2**28, 2**20, 4096, 8)",
        "program = 'import os, time; os.fork(); time.sleep(600)'",
        "Jail(allow_unisolated=False).run(Job((*PYTHON, '-c', program), limits, python_views()))",
    ]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_PARENT)}
    host = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], env=environment)
    deadline = time.monotonic() + 60.0
    while len(process_tree(host.pid)) < 5 and time.monotonic() < deadline:  # host, launcher, first, program, its child
        time.sleep(0.05)
    family = process_tree(host.pid)
    assert len(family) == 5
    host.send_signal(signal.SIGKILL)
    host.wait()
    while any(map(psutil.pid_exists, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in family if psutil.pid_exists(pid)] == []
