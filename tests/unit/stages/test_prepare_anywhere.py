"""Data of an experiment for GPUs, prepared on a machine without any."""

import json
import subprocess
import sys

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows a machine without a GPU")
def test_prepare_needs_no_gpu(tmp_path):
    words = ["experiment=mini_grpo", "stage=prepare", "step=prepare", f"root={tmp_path}", "data.worked_examples=200"]
    tasks = [f"data.tasks.0.{name}={count}" for name, count in (("train", 40), ("heldout", 20), ("cold_start", 20))]
    # A process of its own: the stand-ins for CUDA have to come before megatron-core, which other tests have imported.
    command = [sys.executable, "-m", "r1train", *words, *tasks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "prepare" / "result.json").read_text())["stage"] == "prepare"
    assert (tmp_path / "data" / "prompts" / "heldout.jsonl").read_text().count("\n") == 20
