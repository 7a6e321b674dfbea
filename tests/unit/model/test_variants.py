"""Every member of the DeepSeek family builds, trains a step on CPU, and scales its attention as published."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from shapes import DEEPSEEK, V2_LITE, V3
from tiny import config, windows


@pytest.fixture
def fresh_metrics(device) -> Iterator[None]:
    """megatron-core's tracker of the balance losses keeps the number of layers of the first model of a process."""
    from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker

    destroy_moe_metrics_tracker()
    yield
    destroy_moe_metrics_tracker()


@pytest.mark.parametrize("name", DEEPSEEK)
def test_a_step_reaches_every_parameter(device, fresh_metrics, name):
    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.setup import build_trainer
    from r1train.train.step import train_step

    trainer = build_trainer(config("single", model=DEEPSEEK[name]), device, total_steps=10)
    before = {key: value.clone() for key, value in trainer.module.named_parameters()}
    batches = dense_micro_batches(windows(4, seq_length=48, seed=3), 2)
    first = train_step(trainer, batches, LmObjective())
    assert first.num_tokens == 4 * 48
    assert first.logs["loss"] == pytest.approx(4.16, abs=0.7)  # ln 64: the model knows nothing
    gradients = {key: value.main_grad.abs().max().item() for key, value in trainer.module.named_parameters()}
    assert [key for key, size in gradients.items() if size == 0] == []
    assert all(not value.equal(before[key]) for key, value in trainer.module.named_parameters())
    assert train_step(trainer, batches, LmObjective()).logs["loss"] < first.logs["loss"]


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        # (128 + 64)^-1/2 times (0.1 x 1.0 x ln 40 + 1)^2, and with 0.707 in place of 1.0
        (V3, 0.135234),
        (V2_LITE, 192**-0.5 * 1.58963),
        (replace(V3, yarn=None), 192**-0.5),
    ],
    ids=["mscale_1.0", "mscale_0.707", "no_yarn"],
)
def test_attention_scale(device, model, scale):
    from r1train.model.build import build_model

    wide = replace(model, qk_nope_head_dim=128, qk_rope_head_dim=64)
    attention = build_model(config("single", model=wide), device).decoder.layers[0].self_attention
    assert attention.softmax_scale == pytest.approx(scale, rel=1e-5)
    assert attention.core_attention.softmax_scale == attention.softmax_scale
    assert attention.rotary_pos_emb(8)[1] == 1.0 if model.yarn else True  # both mscales alike: cos and sin unscaled


def test_yarn_slows_the_frequencies_of_the_ramp(device):
    """Width 64, base 1e4, 4096 positions, beta 32 and 1: pairs 0 to 10 as they are, 23 to 31 divided by 40."""
    from r1train.model.build import build_model

    yarn = replace(V3.yarn, original_max_positions=4096)
    wide = replace(V3, qk_rope_head_dim=64, yarn=yarn)
    rope = build_model(config("single", model=wide), device).decoder.layers[0].self_attention.rotary_pos_emb
    angle = rope(2)[0][1, 0, 0, :32].double()
    plain = 10000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    ratio = plain / angle
    torch.testing.assert_close(ratio[:11], torch.ones(11, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(ratio[23:], torch.full((9,), 40.0, dtype=torch.float64), atol=1e-3, rtol=0)
    assert (ratio[10:24].diff() > 0).all()
