"""Packed rows: losses and gradients of each sequence alone, and padding that changes nothing."""

from dataclasses import dataclass, replace

import pytest
import torch
from tiny import MODEL, config, set_expert_bias

from r1train.config.schema_model import ModelConfig

LENGTHS, COUNTED = (9, 14, 6), 4  # every sequence has four tokens that count
# The sequence loss averages over a row, so it differs by definition between one row and three.
NO_SEQUENCE_LOSS = replace(MODEL, sequence_loss_coef=0.0)


@pytest.fixture
def samples() -> list:
    """Three token sequences; loss on the last four tokens of each, as if the rest were a prompt."""
    from r1train.data.chat import Sample

    generator = torch.Generator().manual_seed(2)
    found = []
    for index, length in enumerate(LENGTHS):
        tokens = torch.randint(3, 64, (length,), generator=generator).numpy()
        trained = (torch.arange(length) >= length - COUNTED).float().numpy()
        found.append(Sample(id=str(index), tokens=tokens, trained=trained, extras={}))
    return found


def micro_batches(rows: list[list], *, seq_length: int | None) -> list:
    """Each row packed; without a length to exactly the tokens it holds."""
    from r1train.data.batch import pack
    from r1train.train.batches import packed_micro_batches

    found = []
    for row in rows:
        width = seq_length or sum(len(sample.tokens) for sample in row)
        found += packed_micro_batches([pack(row, seq_length=width, pad_id=2)], seq_length=width, pad_id=2)
    return found


@dataclass(frozen=True)
class Outcome:
    """Per-token losses [T] of every micro-batch; gradients and updated biases by name, after a step for each."""

    losses: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]
    biases: dict[str, torch.Tensor]


def steps(device, batches: list, *, model: ModelConfig = NO_SEQUENCE_LOSS) -> Outcome:
    """One step for each micro-batch; the gradients of the steps are added up, the weights stay."""
    from r1train.train.forward import LmObjective, forward_backward, forward_only
    from r1train.train.setup import build_trainer

    trainer = build_trainer(config("single", model=model), device, total_steps=10)
    set_expert_bias(trainer.module)
    trainer.model_config.mtp_loss_scaling_factor = 0.3
    trainer.model_config.moe_router_bias_update_rate = 1e-3
    losses = [forward_only(trainer.model, [batch], LmObjective())[0][0] for batch in batches]
    gradients = {name: torch.zeros_like(p) for name, p in trainer.module.named_parameters()}
    for batch in batches:  # rows of different lengths cannot share a schedule
        trainer.model.zero_grad_buffer()
        forward_backward(trainer.model, [batch], LmObjective())
        for name, parameter in trainer.module.named_parameters():
            gradients[name] += parameter.main_grad
    biases = {name: buffer.clone() for name, buffer in trainer.module.named_buffers() if name.endswith("expert_bias")}
    return Outcome(losses, gradients, biases)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Every gradient within 1e-5 of its largest entry; all but those of idle experts are not zero."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), name
    moving = {name for name, gradient in expected.items() if gradient.abs().max() > 0}
    assert {name for name in expected if "local_experts" not in name} <= moving
    assert any("local_experts" in name for name in moving)


def test_packed_row_equals_sequences_alone(device, samples):
    """The row divides by 12 tokens, the three by 4 each: their sum is three times the row's gradient. MTP is on."""
    row = steps(device, micro_batches([samples], seq_length=None))
    alone = steps(device, micro_batches([[sample] for sample in samples], seq_length=None))
    torch.testing.assert_close(row.losses[0], torch.cat(alone.losses), atol=1e-5, rtol=1e-5)
    assert_close({name: 3 * gradient for name, gradient in row.gradients.items()}, alone.gradients)
    assert any(name.startswith("mtp.") for name in row.gradients)


# With MTP megatron-core shifts the padding mask, which lets one padding token into MTP's own sequence loss.
# One layer more in its place: megatron-core's loss tracker has one length for the life of a process.
NO_MTP = replace(MODEL, mtp_depth=0, num_layers=4)


@pytest.mark.parametrize("model", [NO_SEQUENCE_LOSS, NO_MTP], ids=["mtp", "sequence_loss"])
def test_padding_changes_nothing(device, samples, model):
    """Not the losses, not the gradients (the routers' sequence loss included), not the biases that follow the load."""
    tight = steps(device, micro_batches([samples], seq_length=None), model=model)
    padded = steps(device, micro_batches([samples], seq_length=48), model=model)
    torch.testing.assert_close(padded.losses[0][: sum(LENGTHS)], tight.losses[0], atol=1e-5, rtol=1e-5)
    assert_close(padded.gradients, tight.gradients)
    decoder = [name for name in tight.biases if name.startswith("decoder.")]
    assert len(decoder) == model.num_layers - 1
    assert all(torch.equal(padded.biases[name], tight.biases[name]) for name in decoder)


def test_padding_mask(device, samples):
    """29 tokens of samples in a row of 32, and a row of padding, whose first token stays in."""
    padded, full, empty = micro_batches([samples], seq_length=32) + micro_batches([samples, []], seq_length=29)
    assert padded.padding_mask().tolist() == [[False] * 29 + [True] * 3]
    assert full.padding_mask().tolist() == [[False] * 29]
    assert empty.padding_mask().tolist() == [[False] + [True] * 28]
    assert replace(full, cu_seqlens=None).padding_mask() is None


def test_a_row_of_padding_has_no_gradient(device):
    empty = micro_batches([[]], seq_length=32)
    outcome = steps(device, empty)
    assert outcome.losses[0].shape == (32,)
    assert all(gradient.eq(0).all() for gradient in outcome.gradients.values())
    assert all(gradient.isfinite().all() for gradient in steps(device, empty, model=MODEL).gradients.values())
