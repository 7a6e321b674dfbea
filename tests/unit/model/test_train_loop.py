"""The training loop with a real trainer: what it writes about its own time."""

import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest


@dataclass(frozen=True)
class Stage:
    """What the loop reads of a stage."""

    steps: int = 3
    save_every_steps: int = 10
    keep_checkpoints: int = 1


def test_time_spent_waiting_for_data_is_logged(device, tmp_path):
    """A source that takes 0.2 s for the second step and nothing for the others."""
    from tiny import config, windows

    from r1train.log.metrics import read_metrics
    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.loop import StepSource, train_loop
    from r1train.train.setup import build_trainer

    def batches(position, count):
        time.sleep(0.2 if position == 4 else 0.0)
        return dense_micro_batches(windows(count, seq_length=32, seed=position), 2)

    cfg = replace(config("single"), run_dir=tmp_path, stage=Stage())
    trainer = build_trainer(cfg, device, total_steps=3)
    trainer.cfg = SimpleNamespace(**vars(cfg), step="pretrain")
    train_loop(trainer, StepSource(batches, samples=lambda _: 4), LmObjective())
    rows = read_metrics(tmp_path / "metrics.jsonl")
    waits = [row["time/data_wait_s"] for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert waits[1] >= 0.2 > max(waits[0], waits[2])
    assert all(wait < row["time/step_s"] for wait, row in zip(waits, rows, strict=True))
    assert rows[0]["time/tokens_per_s"] == pytest.approx(4 * 32 / rows[0]["time/step_s"])
