"""tools/bench_tokenise.py: both sides make the same tokens of the same rows, and their times stand side by side."""

import json
import subprocess
import sys

from r1train.data.tokenizer import save_tokenizer


def test_both_sides_are_measured(small_tokenizer, tmp_path, repo):
    save_tokenizer(small_tokenizer._plain, tmp_path / "tokenizer")
    texts = [f"{n} and {n + 1} are numbers" for n in range(300)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    options = ["--input", rows, "--text-field", "body", "--tokenizer", tmp_path / "tokenizer", "--rounds", 1]
    command = [sys.executable, "-W", "ignore", repo / "tools/bench_tokenise.py", *options, "--workers", 1]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    tokens = sum(map(len, small_tokenizer.encode_many(texts))) + len(texts)
    assert f"{tokens:,} tokens, 1 workers, 1 rounds" in lines[0]
    kinds = [(line.split()[0], line.split()[1]) for line in lines[1:]]
    clocks = [(side, clock) for clock in ("wall", "CPU") for side in ("library", "tool", "ratio")]
    assert kinds == [*clocks, ("library", "peak"), ("tool", "peak"), ("worker", "peak")]
    # One round: the ratio of the medians, with two decimals each; the tool's start alone takes CPU time.
    tool = float(lines[5].split(":")[1].split()[0])
    assert tool > 0.1
    # Python with NumPy and the tokenizers library has some 50 MiB; docs/data.md promises a worker at most 1 GB.
    worker = float(lines[9].split(":")[1].split()[0])
    assert 20 < worker < 1024


GRANDCHILD = "x = bytearray(200_000_000); del x; print(1, flush=True); input()"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {GRANDCHILD!r}])"
LOOK = f"""
import importlib.util, subprocess, sys
spec = importlib.util.spec_from_file_location("bench_tokenise", sys.argv[1])
bench = importlib.util.module_from_spec(spec)
sys.modules["bench_tokenise"] = bench
spec.loader.exec_module(bench)
memory = bench.Memory()
with subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    memory.look()
    process.communicate(b"\\n")
print(memory.worker, memory.own)
"""


def test_memory_is_that_of_the_largest_grandchild(repo):
    """A child that starts one with 200 MB; this process's own mark does not fall when its memory is given back."""
    tool = repo / "tools" / "bench_tokenise.py"
    # In a process of its own: this one may have children of other tests.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK, tool], capture_output=True, text=True, check=True
    )
    worker, own = map(float, done.stdout.split())
    assert 190 < worker < 300
    assert own > 20
