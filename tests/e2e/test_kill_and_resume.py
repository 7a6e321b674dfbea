"""SIGKILL at any moment, then the same command again: the same loss lines, bit for bit, and the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1train.config.steps import plan_steps
from r1train.log.compare import first_difference
from r1train.log.metrics import read_metrics

pytestmark = pytest.mark.e2e

OVERRIDES = [
    "experiment=tiny",
    "per_stage.pretrain.stage.steps=12",
    "per_stage.pretrain.stage.save_every_steps=4",
    "per_stage.rl1.evaluate_after=false",
    "per_stage.rl1.stage.steps=4",
    "per_stage.rl1.stage.save_every_steps=2",
    "per_stage.rl1.stage.reference_refresh_steps=2",
    "per_stage.rl1.stage.prompts_per_step=4",
]
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(root: Path, step: str, extra: list[str]) -> list[str]:
    planned = next(p for p in plan_steps([*OVERRIDES, f"root={root}", *extra]) if p.step.id == step)
    launch = [] if planned.step.stage == "prepare" else LAUNCH
    return [sys.executable, *launch, "-m", "r1train", *planned.overrides]


def run(root: Path, step: str, *extra: str) -> None:
    done = subprocess.run(command(root, step, list(extra)), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def kill_after(root: Path, step: str, lines: int, *extra: str) -> None:
    """Start the stage and kill launcher and workers once metrics.jsonl has this many lines."""
    metrics = root / step / "metrics.jsonl"
    process = subprocess.Popen(
        command(root, step, list(extra)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 180
    while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
        assert process.poll() is None and time.monotonic() < deadline, "the stage ended before it could be killed"
        time.sleep(0.02)
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    for pid in (process.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not (root / step / "result.json").exists()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(uninterrupted, interrupted): the same steps on the same data."""
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    run(whole, "prepare")
    data = f"data.dir={whole / 'data'}"
    run(whole, "pretrain")
    kill_after(broken, "pretrain", 6, data)
    run(broken, "pretrain", data)
    start = f"stage.init_from={whole / 'pretrain'}"
    run(whole, "rl1", start)
    kill_after(broken, "rl1", 3, data, start)
    run(broken, "rl1", data, start)
    return whole, broken


@pytest.mark.parametrize(("step", "steps"), [("pretrain", 12), ("rl1", 4)])
def test_metrics_are_bit_identical(runs: tuple[Path, Path], step: str, steps: int):
    whole, broken = (root / step / "metrics.jsonl" for root in runs)
    assert [json.loads(line)["step"] for line in broken.read_text().splitlines()] == list(range(1, steps + 1))
    assert first_difference(read_metrics(whole), read_metrics(broken), rtol=None) is None


def test_a_finished_stage_is_left_alone(runs: tuple[Path, Path]):
    whole, _ = runs
    before = (whole / "pretrain" / "result.json").stat().st_mtime_ns
    run(whole, "pretrain")
    assert (whole / "pretrain" / "result.json").stat().st_mtime_ns == before
