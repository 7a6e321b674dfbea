"""Context parallelism: which tokens each rank takes, and that nothing is lost or moved."""

import pytest
import torch

from r1train.train.context import cut, put_back, take
from r1train.train.micro_batch import MicroBatch


def dense(length: int) -> MicroBatch:
    tokens = torch.arange(2 * length).reshape(2, length)
    positions = torch.arange(length).expand(2, -1)
    return MicroBatch(tokens, tokens + 1, positions, torch.ones(2, length), None, {"extra": tokens.float()})


def packed(*lengths: int, padding: int = 0) -> MicroBatch:
    """Samples whose every token counts, then a padding segment."""
    bounds = torch.tensor([0, *lengths, *([padding] if padding else [])]).cumsum(0).int()
    total = int(bounds[-1])
    tokens = torch.arange(100, 100 + total)[None]
    positions = torch.cat([torch.arange(n) for n in (*lengths, *([padding] if padding else []))])[None]
    mask = (torch.arange(total) < total - padding).float()[None]
    return MicroBatch(tokens, tokens + 1, positions, mask, bounds, {"extra": tokens.float()})


def test_dense_rows_are_cut_into_early_and_late_parts():
    """Eight tokens over two ranks in four parts: the first and the last for rank 0, the middle two for rank 1."""
    batch = dense(8)
    shared = cut(batch, cp_size=2, tp_size=1)
    assert shared.places.tolist() == [[0, 1, 6, 7], [2, 3, 4, 5]]
    part = take(batch, shared, 1)
    assert part.tokens.tolist() == [[2, 3, 4, 5], [10, 11, 12, 13]]
    assert part.labels.tolist() == [[3, 4, 5, 6], [11, 12, 13, 14]]
    assert part.positions.tolist() == [[2, 3, 4, 5]] * 2
    assert part.extras["extra"].tolist() == [[2, 3, 4, 5], [10, 11, 12, 13]]
    assert part.cu_seqlens is None and part.padding_mask() is None


def test_packed_rows_are_cut_segment_by_segment():
    """Segments of 5 and 3 tokens become 8 and 4, so that each gives both ranks an early and a late part.

    The last one becomes 8, because FP8 takes 8 tokens of a rank at a time.
    """
    batch = packed(5, 3)
    shared = cut(batch, cp_size=2, tp_size=1)
    assert shared.cu_seqlens.tolist() == [0, 8, 16]
    assert shared.places.tolist() == [[0, 1, -1, -1, 5, 6, -1, -1], [2, 3, 4, -1, 7, -1, -1, -1]]
    first, second = (take(batch, shared, rank) for rank in (0, 1))
    assert first.tokens.tolist() == [[100, 101, 0, 0, 105, 106, 0, 0]]
    assert second.positions.tolist() == [[2, 3, 4, 0, 2, 0, 0, 0]]
    assert first.loss_mask.tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]]
    assert first.padding_mask().tolist() == [[False, False, True, True, False, False, True, True]]
    assert (first.loss_mask.sum() + second.loss_mask.sum()).item() == 8
    assert first.cu_seqlens.tolist() == [0, 8, 16]


def test_packed_rows_of_whole_units_stay_as_they_are():
    """32 tokens over two ranks, whose 16 are 8 of each tensor-parallel rank."""
    shared = cut(packed(12, 20), cp_size=2, tp_size=2)
    assert shared.cu_seqlens.tolist() == [0, 12, 32]
    assert sorted(shared.places.flatten().tolist()) == list(range(32))


@pytest.mark.parametrize(("cp_size", "tp_size"), [(2, 1), (2, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    "batch", [dense(48), packed(5, 3, 40), packed(7, padding=9)], ids=["dense", "packed", "padded"]
)
def test_every_token_is_taken_once_and_comes_back(batch, cp_size, tp_size):
    shared = cut(batch, cp_size=cp_size, tp_size=tp_size)
    length = batch.tokens.shape[1]
    taken = shared.places[shared.places >= 0]
    assert sorted(taken.tolist()) == list(range(length))
    assert shared.places.shape[1] % (2 if batch.cu_seqlens is None else 8 * tp_size) == 0
    parts = [take(batch, shared, rank).tokens for rank in range(cp_size)]
    assert torch.equal(put_back(parts, shared, length), batch.tokens)


def test_padding_segments_stay_padding_and_one_token_of_an_empty_row_counts():
    batch = packed(4, padding=4)
    shared = cut(batch, cp_size=2, tp_size=1)
    assert take(batch, shared, 0).padding_mask().tolist() == [[False] * 2 + [True] * 6]
    empty = MicroBatch(
        *(torch.zeros(1, 8, dtype=torch.int64) for _ in range(3)), torch.zeros(1, 8), batch.cu_seqlens, {}
    )
    assert take(empty, cut(empty, cp_size=2, tp_size=1), 1).padding_mask().tolist() == [[False] + [True] * 7]
