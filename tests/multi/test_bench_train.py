"""tools/bench_train.py on CPU: one line with what was measured, of the tiny model."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from r1train.convert.export_plan import read_model
from r1train.plan.shape import count_parameters

SHAPE = [
    "--precision=fp32",
    "--tokens-per-gpu=512",
    "--seq-length=64",
    "--micro-batch-size=2",
    "--steps=2",
    "--warm-up=1",
]
TINY = ["--overrides", "model=tiny", "cluster=local_cpu", "data.tokenizer_vocab_size=512", "model.mtp_depth=0"]


def bench(repo: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", repo / "tools/bench_train.py", *SHAPE, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_one_line_says_what_was_measured(repo: Path, tmp_path: Path):
    done = bench(repo, "--out", tmp_path / "lines.jsonl", *TINY, "--set", "layernorm_epsilon=1e-3")
    assert done.returncode == 0, done.stderr[-3000:]
    tiny = read_model(repo / "conf/model/tiny.yaml")
    line = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "lines.jsonl").read_text()) == line
    assert (line["layout"], line["micro_batches"], line["steps"]) == ("tp1 pp1 ep1 dp1", 4, 2)
    assert line["low_s"] <= line["step_s"] <= line["high_s"]
    assert line["tokens_per_s"] == pytest.approx(512 / line["step_s"], rel=1e-2)
    # Two MoE layers have a bias per expert, which is no parameter; the tool makes 16 experts of the model's 8.
    assert line["parameters_per_gpu"] == count_parameters(replace(tiny, num_experts=16, mtp_depth=0)).total - 2 * 16
    assert 5.5 < line["loss"] < 8.0  # ln 512 is 6.2
    assert line["backends"]["attention"] == "CoreAttention"
    assert line["set"] == {"layernorm_epsilon": 1e-3}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--micro-batch-size=3"], "stage.batch_size = 8"),
        (["--pp=3"], "--pp 3: no layout is known for it"),
        (["--ep=2"], "parallel.ep = 2"),
    ],
)
def test_impossible_shapes_are_refused(repo: Path, run_warm: Callable, options: list[str], says: str):
    done = run_warm(repo / "tools/bench_train.py", 1, *SHAPE, *options, *TINY)
    assert done.returncode == 2
    assert says in done.output
