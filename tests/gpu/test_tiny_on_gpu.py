"""The tiny experiment on one GPU: Transformer Engine, bf16, NCCL, through the same command line as on CPU."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu1

STEPS = ("prepare", "pretrain", "cold_start", "rl1")
OVERRIDES = [
    "experiment=tiny_gpu",
    "per_stage.pretrain.stage.steps=60",
    "per_stage.pretrain.stage.save_every_steps=30",
    "per_stage.cold_start.stage.steps=20",
    "per_stage.grpo.stage.steps=4",
]


@pytest.fixture(scope="module")
def root(run_steps: Callable[..., Path]) -> Path:
    """Run folder of the first four steps of the schedule."""
    return run_steps(STEPS, OVERRIDES)


def metrics(root: Path, step: str) -> list[dict]:
    return [json.loads(line) for line in (root / step / "metrics.jsonl").read_text().splitlines()]


def test_pretraining_learns(root: Path):
    rows = metrics(root, "pretrain")
    assert [row["step"] for row in rows] == list(range(1, 61))
    # The first loss is that of a uniform guess over 512 tokens, ln 512 = 6.24; the unigram entropy is far below.
    assert rows[0]["loss"] == pytest.approx(6.24, abs=0.6)
    assert rows[-1]["loss"] < rows[0]["loss"] - 2.0


def test_fine_tuning_is_scored_on_heldout_problems(root: Path):
    result = json.loads((root / "cold_start" / "result.json").read_text())
    assert result["evals"]["chain_sum"]["problems"] >= 200
    assert metrics(root, "cold_start")[-1]["loss"] < metrics(root, "cold_start")[0]["loss"] - 1.0


def test_engine_and_trainer_agree_in_bf16(root: Path):
    rows = metrics(root, "rl1")
    assert len(rows) == 4
    # The bound that docs/rl.md states for bf16, and at which the GPU experiments stop.
    assert max(row["logprob_gap_mean"] for row in rows) < 0.02
    # The first minibatch of a rollout is on policy: trainer and old log-probabilities are the same numbers.
    assert rows[0]["ratio"] == pytest.approx(1.0, abs=1e-3)


def test_layers_are_transformer_engine(root: Path):
    probe = (
        "from r1train.config.load import load_config; from r1train.dist.init import select_device, init_processes\n"
        f"cfg = load_config(['experiment=tiny_gpu', 'stage=pretrain', 'root={root}'], check_files=False)\n"
        "device = select_device(cfg.cluster); init_processes(device, cfg.parallel, cfg.cluster)\n"
        "from r1train.dist.seed import seed_all; seed_all(1)\n"
        "from r1train.model.build import build_model\n"
        "layer = build_model(cfg, device).decoder.layers[1]\n"
        "print('KINDS', type(layer.self_attention.core_attention).__name__, type(layer.mlp.experts).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=False)
    assert "KINDS TEDotProductAttention TEGroupedMLP" in done.stdout, done.stderr[-3000:]
