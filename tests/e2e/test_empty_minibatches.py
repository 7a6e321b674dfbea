"""Every response is truncated and none is trained on: updates are skipped and counted, and the run goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from r1train.log.manifest import FILE_NAME as MANIFEST
from r1train.log.metrics import read_metrics

pytestmark = pytest.mark.e2e

MASK = ("rl.overlong.rule=mask", "stage.save_every_steps=2")


def test_updates_without_a_sample_are_skipped(tmp_path: Path, grpo: Callable):
    run = tmp_path / "rl1"
    done = grpo(tmp_path, *MASK, "stage.steps=2", "rollout.max_response_tokens=1")
    assert done.returncode == 0, done.output[-4000:]
    rows = read_metrics(run / "metrics.jsonl")
    assert [(row["step"], row["trained_samples"], row["tokens"]) for row in rows] == [(1, 0.0, 0), (2, 0.0, 0)]
    assert all((row["loss"], row["grad_norm"], row["truncated_share"]) == (0.0, 0.0, 1.0) for row in rows)
    log = (run / "logs" / "rank_0.log").read_text()
    assert "step 2: no sample to learn from, the update is skipped" in log
    folder = run / "checkpoints" / "step_00000002"
    marker = {"step": 2, "tokens": 0, "position": 8, "late_from": None}
    assert json.loads((folder / "_DONE").read_text()) == marker

    # From a checkpoint whose optimizer never stepped, with a budget that some responses keep.
    for name in ("result.json", MANIFEST):  # without them it is no run of other settings
        (run / name).unlink()
    again = grpo(tmp_path, *MASK, "stage.steps=4")
    assert again.returncode == 0, again.output[-4000:]
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(0 < row["trained_samples"] <= 16 and row["grad_norm"] > 0 for row in rows[2:])
    samples = [
        sample["finish"]
        for path in run.glob("rollouts/step_00000002_dp_*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
        for sample in row["samples"]
    ]
    # 8 prompts with 4 samples each; those that ended themselves are trained on.
    assert len(samples) == 32
    assert sum(row["trained_samples"] for row in rows[2:]) == samples.count("eos") > 0
