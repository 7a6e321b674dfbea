"""Attention of a decode step against sums written out: rotation, windows, and what flash attention is asked for."""

import pytest
import torch

from r1train.model.decode_attention import attend, flash_attend, rotate_, scored_attend
from r1train.model.decode_slots import Slots

GROUPS, EACH, WIDTH, CAPACITY = 2, 3, 16, 12


def slots_at(positions: list[list[int]], visible: int, *, width: int = WIDTH, dtype=torch.float32) -> Slots:
    """A rotation by position * 0.1 ** (2 i / width) of pair i."""
    angles = torch.arange(visible)[:, None] * 0.1 ** (torch.arange(width // 2) * 2 / width)
    table = torch.stack([torch.cat([angles.cos()] * 2, 1), torch.cat([-angles.sin(), angles.sin()], 1)], 1)
    return Slots.at(torch.tensor(positions), table.to(dtype), visible=visible)


def inputs(tokens: int, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(tokens, sequences, GROUPS, EACH, WIDTH, generator=generator)
    return query, torch.randn(sequences, CAPACITY, GROUPS, 2, WIDTH, generator=generator)


def written_out(query, entries, positions: list[list[int]], window: int | None) -> torch.Tensor:
    """[s, b, g * m * d]: one softmax per token and head, over the slots that it sees."""
    out = torch.zeros(query.shape)
    for row, places in enumerate(positions):
        for token, place in enumerate(places):
            first = 0 if window is None else max(0, place - window + 1)
            for group in range(GROUPS):
                keys, values = entries[row, first : place + 1, group].unbind(1)
                for head in range(EACH):
                    weights = (keys @ query[token, row, group, head] / WIDTH**0.5).softmax(0)
                    out[token, row, group, head] = weights @ values
    return out.flatten(2)


@pytest.mark.parametrize("window", (None, 1, 3, 100))
@pytest.mark.parametrize("positions", ([[4], [0], [9]], [[2, 3, 4], [0, 1, 2], [7, 8, 9]]))
def test_scores_in_full(window, positions):
    query, entries = inputs(len(positions[0]), 3)
    slots = slots_at(positions, 10).within(window)
    expected = written_out(query, entries, positions, window)
    torch.testing.assert_close(scored_attend(query, entries, slots), expected)
    assert torch.equal(attend(query, entries, slots), scored_attend(query, entries, slots))  # no GPU here


def flash_by_its_documentation(query, keys, values, from_q, from_k, *rest, **options):
    """torch's op on packed sequences, one softmax per sequence and head; a window counts from the last key."""
    before, after, used = options["window_size_left"], options["window_size_right"], options["seqused_k"]
    max_q, max_k, dropout, causal, debug = rest
    assert (max_q, dropout, causal, debug) == (1, 0.0, False, False)
    assert {from_q.dtype, from_k.dtype, used.dtype} == {torch.int32}
    assert keys.data_ptr() != values.data_ptr() and keys.stride() == values.stride() and keys.stride(-1) == 1
    assert (before, after) == (-1, -1) or (before >= 0 and after == 0)
    out = torch.zeros(query.shape)
    for row, count in enumerate(used.tolist()):
        assert count <= max_k and from_q[row] == row
        last = from_k[row].item() + count
        assert last <= from_k[row + 1]
        first = from_k[row].item() if before < 0 else max(from_k[row].item(), last - 1 - before)
        for head in range(query.shape[1]):
            group = head // (query.shape[1] // keys.shape[1])
            weights = (keys[first:last, group] @ query[row, head] * options["scale"]).softmax(0)
            out[row, head] = weights @ values[first:last, group]
    return out, None, None, None, None


@pytest.mark.parametrize("window", (None, 1, 3, 9, 10, 100))
def test_what_flash_attention_is_asked_for(monkeypatch, window):
    """In the middle of a larger cache, as one layer of some rows of it."""
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_by_its_documentation)
    positions = [[4], [0], [9]]
    query, entries = inputs(1, 3)
    cache = torch.full((2, 5, CAPACITY, GROUPS * 2 * WIDTH), float("nan"))
    cache[1, 1:4] = entries.flatten(2)
    layer = cache[:, 1:4][1].unflatten(-1, (GROUPS, 2, WIDTH))
    found = flash_attend(query, layer, slots_at(positions, 10).within(window))
    torch.testing.assert_close(found, written_out(query, entries, positions, window))


def test_every_layer_of_a_forward_shares_masks_and_bounds():
    slots = slots_at([[4], [0]], 10)
    assert slots.within(3).unseen() is slots.within(3).unseen()
    assert slots.within(3).unseen() is not slots.unseen() and slots.unseen() is slots.within(None).unseen()
    assert slots.within(3).bounds(CAPACITY) is slots.bounds(CAPACITY)
    ends, starts, filled = slots.bounds(CAPACITY)
    assert (ends.tolist(), starts.tolist(), filled.tolist()) == ([0, 1, 2], [0, 12, 24], [5, 1])
    assert slots.unseen()[:, 0, 0].isinf().int().tolist() == [[0] * 5 + [1] * 5, [0] + [1] * 9]
    seen = slots.within(3).unseen()[:, 0, 0] == 0
    assert seen.int().tolist() == [[0, 0, 1, 1, 1, 0, 0, 0, 0, 0], [1] + [0] * 9]


@pytest.mark.parametrize(("dtype", "bound"), ((torch.float32, 1e-6), (torch.bfloat16, 2**-6)))
def test_rotation_is_the_training_rotation(dtype, bound):
    """Keys of 3 sequences with 2 tokens, halves (GQA) and pairs (MLA), with YaRN's factor on cos and sin."""
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    from r1train.model.decode_latent import _rotate

    positions, mscale = torch.tensor([[2, 3], [0, 1], [8, 9]]), 1.25
    angles = torch.arange(10)[:, None] * 0.3 ** (torch.arange(WIDTH // 2) * 2 / WIDTH)
    angles = torch.cat([angles, angles], dim=1)
    table = torch.stack([angles.cos(), angles.sin()], dim=1).mul_(mscale)
    table[:, 1, : WIDTH // 2].neg_()
    slots = Slots.at(positions, table.to(dtype), visible=10)
    x = torch.randn(2, 3, 4, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    of_tokens = angles[positions].transpose(0, 1)[:, :, None]  # [s, b, 1, r]
    expected = _apply_rotary_pos_emb_bshd(x, of_tokens, mscale=mscale)
    found = rotate_(x.clone().view(6, 2, 2, WIDTH), slots).view(x.shape)
    torch.testing.assert_close(found, expected, atol=bound * x.abs().max().item(), rtol=0)
    expected = _apply_rotary_pos_emb_bshd(x, of_tokens, mla_rotary_interleaved=True, mscale=mscale)
    query, key = _rotate(x[:, :, :-1], x[:, :, -1], slots)
    found = torch.cat([query, key[:, :, None]], dim=2)
    torch.testing.assert_close(found, expected, atol=bound * x.abs().max().item(), rtol=0)
