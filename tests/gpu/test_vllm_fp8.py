"""vLLM with FP8 weights: after a push it computes what it computes of the FP8 export of the same checkpoint."""

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from mla_model import MODEL_OVERRIDES

HAS_VLLM = importlib.util.find_spec("vllm") is not None
pytestmark = [pytest.mark.gpu1, pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed")]

WORKER = Path(__file__).parent / "worker" / "fp8_engine.py"
EXPORT = Path(__file__).parents[2] / "tools" / "export_hf.py"
OVERRIDES = ["experiment=tiny_gpu", *MODEL_OVERRIDES]


def call(*command: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_push_and_an_export_give_the_same_engine(
    run_steps: Callable[[Iterable[str], list[str]], Path], tmp_path: Path
):
    """Decoding and reading a prompt are other kernels, so log-probabilities may differ by rounding."""
    short = ["per_stage.pretrain.stage.steps=60", "per_stage.cold_start.stage.steps=20"]
    root = run_steps(("prepare", "pretrain", "cold_start"), [*OVERRIDES, *short])
    run = root / "cold_start"
    call(WORKER, "pushed", run, tmp_path / "pushed.json", *OVERRIDES, f"root={root}")
    folder = tmp_path / "hf"
    call(EXPORT, "--ckpt", run, "--out", folder, "--dtype", "fp8", "--tokenizer", root / "data" / "tokenizer")
    call(WORKER, "exported", folder, tmp_path / "pushed.json", tmp_path / "exported.json")
    pushed, exported = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("pushed", "exported"))
    assert sum(ours == theirs for ours, theirs in zip(pushed["tokens"], exported["tokens"], strict=True)) >= 24
    pairs = zip(pushed["logprobs"], exported["logprobs"], strict=True)
    gaps = [abs(ours - theirs) for one in pairs for ours, theirs in zip(*one, strict=True)]
    assert statistics.mean(gaps) < 0.05, statistics.mean(gaps)
