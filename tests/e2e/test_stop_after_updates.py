"""Stops that are judged after a rollout's updates, and a policy whose groups teach nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from r1train.log.metrics import read_metrics

pytestmark = pytest.mark.e2e

STEPS = ("stage.steps=4", "stage.save_every_steps=4")


def test_a_higher_limit_goes_on_and_the_same_one_does_not(tmp_path: Path, grpo: Callable):
    run = tmp_path / "rl1"
    tight = (*STEPS, "rl.stop_if.kl_above=1e-12")
    for attempt in ("first", "again"):
        stopped = grpo(tmp_path, *tight)
        assert stopped.returncode == 1, attempt
        (error,) = set(re.findall(r"^error: (rl1: .*)$", stopped.output, re.M))
        assert "rl.stop_if.kl_above" in error
        # The second start trains no rollout.
        assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2], attempt
        assert ("State saved at step 2" in error) == (attempt == "first")
    resumed = grpo(tmp_path, *STEPS, "rl.stop_if.kl_above=100")
    assert resumed.returncode == 0, resumed.output[-4000:]
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (run / "stopped.json").exists()


def test_equal_answers_leave_the_policy_alone(tmp_path: Path, grpo: Callable):
    """Nearly greedy samples of a prompt are one and the same, so no group has an advantage, and there is no KL term."""
    equal = ("stage.steps=2", "stage.save_every_steps=2", "rollout.temperature=1e-4", "rl.kl_coef=0")
    norms = {}
    for coefficient in ("0.0", "0.01"):
        root = tmp_path / coefficient
        done = grpo(root, *equal, f"rl.sequence_loss_coef={coefficient}")
        assert done.returncode == 0, done.output[-4000:]
        rows = read_metrics(root / "rl1" / "metrics.jsonl")
        assert [row["zero_std_groups_share"] for row in rows] == [1.0, 1.0]
        assert all(("balance/sequence_loss" in row) == (coefficient != "0.0") for row in rows)
        norms[coefficient] = [row["grad_norm"] for row in rows]
    assert norms["0.0"] == [0.0, 0.0]
    assert min(norms["0.01"]) > 1e-4
