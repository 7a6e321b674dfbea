"""The torchrun fixture of conftest.py: output and exit codes come back, and no process outlives it."""

import psutil
import pytest

WORKER = """
import os, sys, time
import torch.distributed as dist
dist.init_process_group("gloo")
import torch
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
print(f"rank {dist.get_rank()} pid {os.getpid()} total {total.item()} args {sys.argv[1:]} {os.environ['EXTRA']}")
mode = sys.argv[1]
if mode == "hang":
    time.sleep(300)
dist.destroy_process_group()
if mode == "fail" and os.environ["RANK"] == "1":
    sys.exit(3)
"""


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return path


@pytest.mark.multi
def test_output_of_all_ranks(torchrun, worker):
    output = torchrun(worker, 2, "ok", 7, EXTRA="seen")
    assert output.count("total 3 args ['ok', '7'] seen") == 2  # 1 + 2, summed over gloo


@pytest.mark.multi
def test_failure_of_one_rank(torchrun, worker):
    with pytest.raises(AssertionError, match="on 2 processes ended with 1") as error:
        torchrun(worker, 2, "fail", EXTRA="x")
    assert "exitcode  : 3" in str(error.value)


@pytest.mark.multi
def test_timeout_ends_every_process(run_torchrun, worker):
    with pytest.raises(pytest.fail.Exception, match=r"took more than 30.0 s") as error:
        run_torchrun(worker, 2, "hang", timeout_s=30.0, EXTRA="x")
    assert "total 3" in str(error.value), "the workers were not up yet"
    script = str(worker)
    assert [p.pid for p in psutil.process_iter(["cmdline"]) if script in (p.info["cmdline"] or [])] == []
