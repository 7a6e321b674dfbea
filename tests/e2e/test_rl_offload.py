"""GRPO with everything in host memory that can be there: the run that kept it on the device, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from r1train.log.compare import first_difference
from r1train.log.metrics import read_metrics

pytestmark = pytest.mark.e2e

OVERRIDES = ("stage.steps=6", "stage.save_every_steps=2")
SWITCHES = ("rl.reference_offload=true", "rl.offload_during_rollout=true")


def test_no_number_changes_also_not_over_a_resume(tmp_path: Path, plain: Path, grpo: Callable):
    """Killed while it draws for update 3, with everything in host memory."""
    killed = grpo(tmp_path, *OVERRIDES, *SWITCHES, fault="die", at=2)
    assert killed.returncode != 0
    done = grpo(tmp_path, *OVERRIDES, *SWITCHES)
    assert done.returncode == 0, done.output[-4000:]
    moved = tmp_path / "rl1"
    kept, found = (read_metrics(run / "metrics.jsonl") for run in (plain, moved))
    assert [row["step"] for row in kept] == [1, 2, 3, 4, 5, 6]
    assert all(row["kl"] > 0 for row in kept[1:4]), "the reference is another model than the policy"
    assert first_difference(kept, found, rtol=None) is None
    stored = sorted(path.name for path in plain.glob("rollouts/*.jsonl"))
    assert len(stored) == 6  # three rollouts, two ranks
    for name in stored:
        assert (plain / "rollouts" / name).read_bytes() == (moved / "rollouts" / name).read_bytes()
