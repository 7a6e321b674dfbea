"""Progress line, peak memory, rank logs and result.json."""

import io
import logging
import os
import subprocess
import sys

import psutil
import pytest

from r1train.log.logger import setup_logging
from r1train.log.memory import PeakMemory, read_peak, save_peak, tree_memory
from r1train.log.progress import ProgressLine
from r1train.log.result import EvalSummary, StageResult, read_result, write_result


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_progress_every_few_seconds_and_at_the_end():
    stream = io.StringIO()
    now = 0.0
    line = ProgressLine("sft", steps=100, start_step=20, rank=0, stream=stream, clock=lambda: now)
    now = 2.0
    line.update(21, loss=3.0, tokens=500)
    assert stream.getvalue() == ""
    now = 10.0
    line.update(25, loss=2.5, tokens=500)
    # 5 steps and 1000 tokens in 10 s; 75 steps left at 2 s each.
    assert stream.getvalue() == "sft step 25/100  loss 2.5000  100 tokens/s  ETA 2:30\n"
    now = 11.0
    line.update(100, loss=1.0, tokens=100)
    assert stream.getvalue().splitlines()[1:] == ["sft step 100/100  loss 1.0000  100 tokens/s  ETA 0:00"]
    line.close()


def test_progress_of_long_runs_has_hours_and_other_ranks_are_silent():
    stream = io.StringIO()
    now = 0.0
    lines = [
        ProgressLine("grpo", steps=1001, start_step=0, rank=rank, stream=stream, clock=lambda: now) for rank in (0, 1)
    ]
    now = 10.0
    for line in lines:
        line.update(1, loss=0.5, tokens=1_000_000)
    assert stream.getvalue() == "grpo step 1/1001  loss 0.5000  100,000 tokens/s  ETA 2:46:40\n"


def test_progress_on_a_terminal():
    stream = Terminal()
    line = ProgressLine("sft", steps=2, start_step=0, rank=0, stream=stream)
    line.update(1, loss=1.25, tokens=10)
    line.update(2, loss=1.125, tokens=10)
    line.close()
    assert "step 2/2  loss 1.1250" in stream.getvalue()


# In a process of its own: other tests' memory, and what they leave running, does not count.
SAMPLED = """
import subprocess, sys, psutil
from r1train.log import memory
child = "import sys; block = bytearray(b'x' * (200 * 2**20)); print('up', flush=True); sys.stdin.read()"
before = memory.tree_memory(psutil.Process())
sampler = memory.MemorySampler(interval_s=0.05)
sampler.start()
child = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert child.stdout.readline() == b"up\\n"
during = memory.tree_memory(psutil.Process())
child.communicate()
peak = sampler.stop()
print(before.processes, during.processes, peak.processes)
print(during.peak_bytes - before.peak_bytes, peak.peak_bytes - before.peak_bytes)
"""


def test_peak_covers_children_that_are_gone_again():
    command = [sys.executable, "-c", SAMPLED]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    before, during, processes, grown, peak = map(int, output.stdout.split())
    assert (before, during, processes) == (1, 2, 2)
    assert 200 * 2**20 < grown < 260 * 2**20
    assert peak > 200 * 2**20


@pytest.mark.skipif(not psutil.LINUX, reason="PSS is a Linux number")
def test_shared_pages_count_once():
    # A forked child shares the parent's 200 MiB: RSS would count them twice.
    code = (
        "import os, psutil; block = bytearray(b'x' * (200 * 2**20)); from r1train.log.memory import tree_memory\n"
        "one = tree_memory(psutil.Process()); r, w = os.pipe(); pid = os.fork()\n"
        "if pid == 0: os.close(w); os.read(r, 1); os._exit(0)\n"
        "two = tree_memory(psutil.Process()); os.close(w); os.waitpid(pid, 0)\n"
        "print(one.processes, two.processes, two.peak_bytes - one.peak_bytes)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    one, two, extra = map(int, output.stdout.split())
    assert (one, two) == (1, 2)
    assert extra < 20 * 2**20


def environment():
    import r1train

    return {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(r1train.__file__))}


def test_process_that_ended_counts_nothing():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    process = psutil.Process(child.pid)
    child.wait()
    assert tree_memory(process).peak_bytes == 0


def test_largest_peak_of_all_runs_stays(tmp_path):
    small, large = (PeakMemory(peak_bytes=size, processes=3, measure="pss") for size in (10, 20))
    assert read_peak(tmp_path) is None
    assert save_peak(tmp_path, large) == large
    assert save_peak(tmp_path, small) == large
    assert read_peak(tmp_path) == large


def test_rank_logs(tmp_path, capsys):
    for rank in (1, 0):
        setup_logging(tmp_path, rank=rank)
        logging.getLogger("r1train.train.loop").warning("from rank %d", rank)
        logging.getLogger("r1train.train.loop").debug("too much")
    captured = capsys.readouterr()
    assert "from rank 0" in captured.err and "from rank 1" not in captured.err
    for rank in (0, 1):
        (line,) = (tmp_path / "logs" / f"rank_{rank}.log").read_text().splitlines()
        assert line.endswith(f"rank {rank} WARNING r1train.train.loop: from rank {rank}")


def test_result_round_trip(tmp_path):
    numbers = EvalSummary(
        pass_at_1=0.5, ci_low=0.4, ci_high=0.6, format_rate=0.9, mean_response_tokens=12.5, problems=200, samples=800
    )
    result = StageResult(
        id="03_grpo", title="GRPO 1", stage="grpo", steps=60, tokens=123, seconds=4.5, loss=0.1, evals={"sums": numbers}
    )
    assert read_result(tmp_path / "run") is None
    path = write_result(tmp_path / "run", result)
    assert read_result(tmp_path / "run") == result
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
