"""One expert of the generation side is spoiled after a push of weights: the run stops in time, and can go on later."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from r1train.log.compare import first_difference
from r1train.log.metrics import read_metrics

pytestmark = pytest.mark.e2e

OVERRIDES = ("stage.steps=6", "stage.save_every_steps=6", "rl.stop_if.logprob_gap_max_above=0.01")


def test_it_stops_with_its_state_saved_and_goes_on_once_the_engine_is_right(
    tmp_path: Path, plain: Path, grpo: Callable, run_torchrun: Callable
):
    stopped = grpo(tmp_path, *OVERRIDES, fault="corrupt", at=2, launch=run_torchrun)
    run = tmp_path / "rl1"
    # torchrun ends with 1 whatever its workers ended with, and says what that was.
    assert (stopped.returncode, re.findall(r"exitcode *: (-?\d+)", stopped.output)[-1]) == (1, "1")
    (error,) = re.findall(r"^error: rl1: (.*)$", stopped.output, re.M)
    beyond = re.findall(r"logprob_gap_max = (\S+) is above 0.01 \(rl\.stop_if\.logprob_gap_max_above\)", error)
    assert len(beyond) == 2, "one for each minibatch of the rollout"
    assert min(map(float, beyond)) > 0.1
    assert "State saved at step 2. Fix: find the cause" in error
    # The step is none that would be saved anyway, and nothing was learned from the rollout that cannot be trusted.
    assert [folder.parent.name for folder in run.glob("checkpoints/*/_DONE")] == ["step_00000002"]
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2]
    assert max(row["logprob_gap_max"] for row in read_metrics(run / "metrics.jsonl")) < 1e-3
    assert not (run / "result.json").exists()

    resumed = grpo(tmp_path, *OVERRIDES)
    assert resumed.returncode == 0, resumed.output[-4000:]
    assert (run / "result.json").exists()
    files = [folder / "metrics.jsonl" for folder in (run, plain)]
    assert [row["step"] for row in read_metrics(files[0])] == [1, 2, 3, 4, 5, 6]
    assert first_difference(*map(read_metrics, files), rtol=None) is None
    for rollout in sorted(plain.glob("rollouts/*.jsonl")):
        assert (run / "rollouts" / rollout.name).read_bytes() == rollout.read_bytes()


def test_it_does_not_stop_a_right_engine(plain: Path):
    rows = read_metrics(plain / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert 0 < max(row["logprob_gap_max"] for row in rows) < 1e-3
