"""The training loop with a real trainer: what it writes about its own time."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest


@dataclass(frozen=True)
class Stage:
    """What the loop reads of a stage."""

    steps: int = 3
    save_every_steps: int = 10
    keep_checkpoints: int = 1


class Clock:
    """Stands for the module time: every look takes a millisecond."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now


def test_time_spent_waiting_for_data_is_logged(device, tmp_path, monkeypatch):
    """A source that takes 0.2 s for the second step and nothing for the others."""
    from tiny import config, windows

    from r1train.log.metrics import read_metrics
    from r1train.train import loop
    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.setup import build_trainer

    def batches(position, count):
        clock.now += 0.2 if position == 4 else 0.0
        return dense_micro_batches(windows(count, seq_length=32, seed=position), 2)

    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    cfg = replace(config("single"), run_dir=tmp_path, stage=Stage())
    trainer = build_trainer(cfg, device, total_steps=3)
    trainer.cfg = SimpleNamespace(**vars(cfg), step="pretrain")
    loop.train_loop(trainer, loop.StepSource(batches, samples=lambda _: 4), LmObjective())
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    # From the look before the source to the one after it, and to the one after the step.
    assert [row["time/data_wait_s"] for row in rows] == pytest.approx([0.001, 0.201, 0.001])
    assert [row["time/step_s"] for row in rows] == pytest.approx([0.002, 0.202, 0.002])
    assert rows[0]["time/tokens_per_s"] == pytest.approx(4 * 32 / 0.002)
