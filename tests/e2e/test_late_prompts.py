"""Prompts without a right answer join GRPO late: from their update on, at their share, graded without accuracy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from r1train.log.metrics import read_metrics

pytestmark = pytest.mark.e2e


def sampled(run: Path, step: int) -> list[dict]:
    """Every prompt of the rollout whose first update is this one, of all ranks."""
    files = run.glob(f"rollouts/step_{step:08d}_dp_*.jsonl")
    return [row for path in files for row in map(json.loads, path.read_text().splitlines())]


def test_open_prompts_join_late(tmp_path: Path, grpo: Callable):
    rows = [
        {"id": f"general/{n}", "task": "general", "question": f"Write {n} words.", "answer": "-", "metadata": {}}
        for n in range(12)
    ]
    late = tmp_path / "general.jsonl"
    late.write_text("".join(json.dumps(row) + "\n" for row in rows))
    joins = f"stage.late_prompts={{prompts: '{late}', share: 0.5, from_step: 3}}"
    done = grpo(tmp_path, joins, "stage.steps=4", "stage.save_every_steps=4")
    assert done.returncode == 0, done.output[-4000:]
    run = tmp_path / "rl1"
    rollouts = sampled(run, 0), sampled(run, 2)
    tasks = [sorted(row["prompt"]["task"] for row in rollout) for rollout in rollouts]
    assert tasks == [["chain_sum"] * 8, ["chain_sum"] * 4 + ["general"] * 4]
    for row in rollouts[1]:
        for score in row["scores"]:
            assert ("accuracy" in score["parts"]) == (row["prompt"]["task"] == "chain_sum")
            assert score["error"] is None and "format" in score["parts"]
    metrics = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert all(row["grader_errors"] == 0 for row in metrics)
    marker = json.loads((run / "checkpoints" / "step_00000004" / "_DONE").read_text())
    assert (marker["position"], marker["late_from"]) == (16, 8)
