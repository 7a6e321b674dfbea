"""The launchers of conftest.py: output and exit codes come back, and no process outlives them."""

import re
from pathlib import Path

import psutil
import pytest

WORKER = """
import os, sys, time
import torch.distributed as dist
dist.init_process_group("gloo")
import torch
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
extra = os.environ.get("EXTRA")
sys.stdout.write(f"rank {dist.get_rank()} pid {os.getpid()} total {total.item()} args {sys.argv[1:]} {extra}\\n")
mode = sys.argv[1]
if mode == "hang":
    time.sleep(300)
dist.destroy_process_group()
if mode == "fail" and os.environ["RANK"] == "1":
    sys.exit(3)
"""
# Who starts the ranks, the exit code where one of them ends with 3, and what of it is in the output.
LAUNCHERS = [("torchrun", 1, "exitcode  : 3"), ("warm", 3, "total 3")]


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return path


def named(worker: Path) -> list[int]:
    """Processes that were started with this file."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(worker) in (p.info["cmdline"] or [])]


@pytest.mark.multi
@pytest.mark.parametrize("launcher", ["torchrun", "warm"])
def test_output_of_all_ranks(request, worker: Path, launcher: str):
    options = {"EXTRA": "seen"} if launcher == "torchrun" else {}
    output = request.getfixturevalue(launcher)(worker, 2, "ok", 7, **options)
    assert output.count(f"total 3 args ['ok', '7'] {options.get('EXTRA')}") == 2  # 1 + 2, summed over gloo


@pytest.mark.multi
@pytest.mark.parametrize(("launcher", "code", "says"), LAUNCHERS)
def test_failure_of_one_rank(request, worker: Path, launcher: str, code: int, says: str):
    with pytest.raises(AssertionError, match=f"on 2 processes ended with {code}") as error:
        request.getfixturevalue(launcher)(worker, 2, "fail")
    assert says in str(error.value)


@pytest.mark.multi
@pytest.mark.parametrize("launcher", ["run_torchrun", "run_warm"])
def test_timeout_ends_every_process(request, worker: Path, launcher: str):
    """Also of workers that are up, which takes the longer the busier the machine is."""
    for timeout_s in (6.0, 12.0, 24.0, 48.0, 96.0):
        with pytest.raises(pytest.fail.Exception, match=rf"took more than {timeout_s} s") as error:
            request.getfixturevalue(launcher)(worker, 2, "hang", timeout_s=timeout_s)
        pids = [int(pid) for pid in re.findall(r"rank \d pid (\d+) total 3", str(error.value))]
        assert named(worker) == [] and not any(map(psutil.pid_exists, pids))
        if len(pids) == 2:
            return
    pytest.fail("the workers never came up")
