"""The training loop with a real trainer: its schedules, and what it writes about its steps and its own time."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch


@dataclass(frozen=True)
class Stage:
    """What the loop and the pretrain stage's data read of a stage."""

    steps: int = 3
    save_every_steps: int = 10
    keep_checkpoints: int = 1
    batch_size: int = 12
    micro_batch_size: int = 2


class Clock:
    """Stands for the module time: every look takes a millisecond."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now


class Windows:
    """Stands for the loader; keeps what was asked for, and runs `before` first."""

    def __init__(self, before):
        self.asked, self._before = [], before

    def batch(self, position, count):
        from tiny import windows

        self._before()
        self.asked.append((position, count))
        return windows(count, seq_length=32, seed=position)


def build(device, tmp_path, stage, **changes):
    from tiny import config

    from r1train.train.setup import build_trainer

    cfg = replace(config("single", **changes), run_dir=tmp_path, stage=stage)
    trainer = build_trainer(cfg, device, total_steps=stage.steps)
    trainer.cfg = SimpleNamespace(**vars(cfg), step="pretrain", data=SimpleNamespace(mask_across_documents=False))
    return trainer


def changing_schedules():
    """MTP 0.3 for three steps, 0.2, then 0.1; bias rate 0.01, 0.002, then 0; batch 4 to 12 in 384 tokens, in fours."""
    from r1train.config.schema_train import LrConfig, Piecewise, Segment

    def piecewise(unit, start, *segments):
        made = tuple(Segment(until=until, shape=shape, to=to) for until, shape, to in segments)
        return Piecewise(start=start, unit=unit, segments=made)

    return LrConfig(
        name="test",
        learning_rate=piecewise("steps", 0.0, (2, "linear", 1e-3), (6, "constant", 5e-4)),
        mtp_weight=piecewise("steps", 0.3, (2, "constant", 0.3), (3, "constant", 0.2), (6, "constant", 0.1)),
        bias_rate=piecewise("steps", 0.01, (1, "constant", 0.01), (3, "constant", 0.002), (6, "constant", 0.0)),
        batch_size=piecewise("tokens", 4, (384, "linear", 12)),
        batch_multiple=4,
    )


def biases(trainer):
    return torch.stack([value for name, value in trainer.module.named_buffers() if name.endswith("expert_bias")])


@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_schedules_change_while_it_trains(device, tmp_path, micro_batch_size):
    """Six steps of the pretrain stage's own data source. The batches are the same whatever the micro-batch."""
    from r1train.log.metrics import read_metrics
    from r1train.stages.pretrain import step_source
    from r1train.train.forward import LmObjective
    from r1train.train.loop import train_loop

    class Recording(LmObjective):
        def forward(self, model, batch):
            weights[-1].add(trainer.model_config.mtp_loss_scaling_factor)
            return super().forward(model, batch)

    def before():
        weights.append(set())
        held.append(biases(trainer).clone())

    weights, held, loader = [], [], Windows(before)
    stage = Stage(steps=6, micro_batch_size=micro_batch_size)
    trainer = build(device, tmp_path, stage, lr=changing_schedules())
    job = SimpleNamespace(cfg=trainer.cfg)
    train_loop(trainer, step_source(job, loader), Recording())
    held.append(biases(trainer))
    rows = read_metrics(tmp_path / "metrics.jsonl")

    assert [row["learning_rate"] for row in rows] == pytest.approx([0.0, 5e-4, 1e-3, 5e-4, 5e-4, 5e-4])
    assert weights == [{0.3}, {0.3}, {0.3}, {0.2}, {0.1}, {0.1}]
    assert [row["mtp_weight"] for row in rows] == [0.3, 0.3, 0.3, 0.2, 0.1, 0.1]

    assert [row["bias_rate"] for row in rows] == [0.01, 0.01, 0.002, 0.002, 0.0, 0.0]
    for row, old, new in zip(rows, held[:-1], held[1:], strict=True):
        rate, moved = row["bias_rate"], new - old
        if rate == 0.0:
            assert torch.equal(old, new)
        else:
            # Experts with more than the mean load go down, with less up; with just as many they stay.
            assert {round(value / rate, 3) for value in moved.flatten().tolist()} <= {-1.0, 0.0, 1.0}
            assert (moved.amax(dim=1) > 0).all() and (moved.amin(dim=1) < 0).all()

    # 4, then 4 + 8 * 128 / 384 = 6.67, to the nearest four, then the ramp's end. A window is 32 tokens.
    assert loader.asked == [(0, 4), (4, 8), (12, 12), (24, 12), (36, 12), (48, 12)]
    assert [row["sequences"] for row in rows] == [4, 8, 12, 12, 12, 12]
    assert [row["tokens"] for row in rows] == [32 * count for count in (4, 12, 24, 36, 48, 60)]


def test_mtp_and_balance_loss_are_those_of_the_forward(device, tmp_path):
    """At initial weights, over micro-batches whose sequences end early: targets, not micro-batches, have one weight."""
    from tiny import windows

    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.step import train_step

    def batches(size):
        mask = (torch.arange(32) < torch.tensor([32, 7, 20, 3])[:, None]).float()
        made = dense_micro_batches(windows(4, seq_length=32, seed=3), size)
        return [replace(one, loss_mask=part) for one, part in zip(made, mask.split(size), strict=True)]

    found = {}
    for size in (1, 2, 4):
        trainer = build(device, tmp_path, Stage())
        result = train_step(trainer, batches(size), LmObjective())
        found[size] = result.logs["loss"], result.logs["mtp_loss"], result.gauges["balance/sequence_loss"]
        assert result.num_tokens == 62
    assert found[1] == pytest.approx(found[4], rel=1e-6)
    assert found[2] == pytest.approx(found[4], rel=1e-6)
    # Random weights over 64 tokens, whose cross entropy lies near ln 64 = 4.16; balance at best 1.
    assert 3.5 < found[1][1] < 6 and found[1][1] != found[1][0]
    assert 1.0 < found[1][2] < 2.0

    # Nothing is left of a step: the next one's losses are its own.
    again = train_step(trainer, batches(4), LmObjective())
    assert again.logs["mtp_loss"] < found[4][1] and again.gauges["balance/sequence_loss"] < 2.0


def test_a_model_without_them_logs_neither(device, tmp_path):
    from tiny import MODEL, windows

    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.step import train_step

    model = replace(MODEL, mtp_depth=0, sequence_loss_coef=0.0)
    trainer = build(device, tmp_path, Stage(), model=model)
    result = train_step(trainer, dense_micro_batches(windows(4, seq_length=32, seed=3), 2), LmObjective())
    assert set(result.logs) == {"loss"}
    assert "balance/max_violation" in result.gauges and "balance/sequence_loss" not in result.gauges


def test_time_spent_waiting_for_data_is_logged(device, tmp_path, monkeypatch):
    """A source that takes 0.2 s for the second step and nothing for the others."""
    from tiny import windows

    from r1train.log.metrics import read_metrics
    from r1train.train import loop
    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective

    def batches(position, count):
        clock.now += 0.2 if position == 4 else 0.0
        return dense_micro_batches(windows(count, seq_length=32, seed=position), 2)

    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    trainer = build(device, tmp_path, Stage())
    loop.train_loop(trainer, loop.StepSource(batches, samples=lambda _: 4), LmObjective())
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    # From the look before the source to the one after it, and to the one after the step.
    assert [row["time/data_wait_s"] for row in rows] == pytest.approx([0.001, 0.201, 0.001])
    assert [row["time/step_s"] for row in rows] == pytest.approx([0.002, 0.202, 0.002])
    assert rows[0]["time/tokens_per_s"] == pytest.approx(4 * 32 / 0.002)
