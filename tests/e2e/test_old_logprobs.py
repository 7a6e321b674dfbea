"""One update per rollout: its own forward stands for the pass before it, and still stops before the weights change.

Here before the first update: the optimizer is empty, and the run that goes on is one that was never stopped.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from r1train.log.compare import first_difference
from r1train.log.metrics import read_metrics

pytestmark = pytest.mark.e2e

OVERRIDES = (
    "stage.minibatches_per_step=1",
    "stage.steps=2",
    "stage.save_every_steps=2",
    "stage.reference_refresh_steps=2",
    "rl.stop_if.logprob_gap_max_above=0.01",
)


def test_numbers_are_those_of_the_pass_and_a_wrong_engine_teaches_nothing(tmp_path: Path, grpo: Callable):
    done = grpo(tmp_path / "pass", *OVERRIDES)
    assert done.returncode == 0, done.output[-4000:]
    update = (*OVERRIDES, "rl.old_logprobs=update")
    stopped, run = grpo(tmp_path / "update", *update, fault="corrupt", at=0), tmp_path / "update" / "rl1"
    assert stopped.returncode == 1
    assert "State saved at step 0. Fix: find the cause" in stopped.output
    assert [folder.parent.name for folder in run.glob("checkpoints/*/_DONE")] == ["step_00000000"]
    assert read_metrics(run / "metrics.jsonl") == []
    resumed = grpo(tmp_path / "update", *update)
    assert resumed.returncode == 0, resumed.output[-4000:]
    expected, found = (read_metrics(one / "metrics.jsonl") for one in (tmp_path / "pass" / "rl1", run))
    assert [row["step"] for row in found] == [1, 2]
    assert all(row["ratio"] == 1.0 and row["logprob_gap_max"] > 0 for row in found)
    # Expert choices are compared in the pass only.
    assert [row.pop("flipped_experts_share") for row in expected] == [0.0, 0.0]
    assert first_difference(expected, found, rtol=1e-5) is None
