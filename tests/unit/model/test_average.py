"""The average of the weights against a loop by hand, over real optimizer steps."""

from dataclasses import replace

import pytest
import torch

DECAY = 0.75


@pytest.fixture
def trainer(device):
    from tiny import OPTIM, config

    from r1train.train.setup import build_trainer

    return build_trainer(config("single", optim=replace(OPTIM, ema_decay=DECAY)), device, total_steps=10)


def step(trainer, seed):
    from tiny import windows

    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.step import train_step

    return train_step(trainer, dense_micro_batches(windows(4, seq_length=32, seed=seed), 2), LmObjective())


def test_average_is_the_hand_loop(trainer):
    expected = {name: value.detach().clone() for name, value in trainer.module.named_parameters()}
    for seed in range(4):
        step(trainer, seed)
        for name, value in trainer.module.named_parameters():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * value.detach()
    found = dict(trainer.average.chunks[0].named_parameters())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-6, atol=1e-7)
    moved = max((value - dict(trainer.module.named_parameters())[name]).abs().max() for name, value in found.items())
    assert moved > 1e-4


def test_biases_of_the_experts_follow_the_model(trainer):
    step(trainer, 0)
    found = {name: value for name, value in trainer.average.chunks[0].named_buffers() if name.endswith("expert_bias")}
    assert len(found) == 3 and all(value.abs().max() > 0 for value in found.values())
    for name, value in trainer.module.named_buffers():
        if name in found:
            assert torch.equal(value, found[name])


def test_a_cache_of_another_length_is_left_alone(trainer):
    """The fused rotary kernel keeps cosines in a buffer that grows with the sequence (megatron-core's YaRN)."""
    rotary = trainer.module.decoder.layers[0].self_attention.rotary_pos_emb
    length = len(rotary.cos_cached)
    rotary.register_buffer("cos_cached", torch.zeros(2 * length, *rotary.cos_cached.shape[1:]), persistent=False)
    step(trainer, 0)
    assert len(trainer.average.chunks[0].decoder.layers[0].self_attention.rotary_pos_emb.cos_cached) == length


def test_no_average_unless_asked(device):
    from tiny import config

    from r1train.train.setup import build_trainer

    assert build_trainer(config("single"), device, total_steps=1).average is None


def test_gauges_count_every_token(trainer):
    """Two experts for each of 4 x 32 tokens in each of three layers; 8 experts, so the mean is 32."""
    gauges = step(trainer, 1).gauges
    assert len(gauges["balance/expert_load"]) == len(gauges["balance/max_violation_per_layer"]) == 3
    for shares, violation in zip(gauges["balance/expert_load"], gauges["balance/max_violation_per_layer"], strict=True):
        assert sum(shares) == pytest.approx(8.0, abs=0.1)
        assert max(shares) - 1 == pytest.approx(violation, abs=0.01)
    second = step(trainer, 2).gauges["balance/expert_load"]
    assert [sum(shares) for shares in second] == pytest.approx([8.0] * 3, abs=0.1)  # the counts start again


@pytest.mark.parametrize("use_ema", [False, True])
def test_weights_or_their_average_are_loaded(trainer, device, tmp_path, use_ema):
    from tiny import config

    from r1train.errors import CheckpointError
    from r1train.log.checkpoints import checkpoints
    from r1train.model.build import build_model
    from r1train.train.checkpoint import load_module, save_checkpoint

    trainer.cfg = replace(trainer.cfg, run_dir=tmp_path)
    step(trainer, 0)
    save_checkpoint(trainer)
    other = build_model(config("single", seed=99), device)
    load_module(other, checkpoints(tmp_path)[0], use_ema=use_ema)
    wanted = trainer.average.chunks[0] if use_ema else trainer.module
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(other.parameters(), wanted.parameters(), strict=True))
    trainer.average = None
    trainer.cfg = replace(trainer.cfg, run_dir=tmp_path / "without")
    save_checkpoint(trainer)
    if use_ema:
        with pytest.raises(CheckpointError, match="keeps no average of the weights"):
            load_module(other, checkpoints(tmp_path / "without")[0], use_ema=True)
