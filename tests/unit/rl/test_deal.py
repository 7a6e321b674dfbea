"""Which data-parallel rank trains on which samples: by hand, and what holds for any lengths."""

import random

from r1train.rl.deal import ranks_by_tokens


def test_longest_first_to_the_rank_with_the_fewest_tokens():
    """9 -> 0, 7 -> 1, 6 -> 2; then 5 -> 2 (11), 4 -> 1 (11), 4 -> 0 (13), and 1 to the first of the two with 11."""
    assert ranks_by_tokens([4, 9, 1, 7, 5, 6, 4], 3) == [1, 0, 1, 1, 2, 2, 0]


def test_ties_go_to_the_first_rank_in_order():
    assert ranks_by_tokens([2, 2, 2, 2, 2], 2) == [0, 1, 0, 1, 0]
    assert ranks_by_tokens([], 2) == []
    assert ranks_by_tokens([3, 1], 4) == [0, 1]


def test_no_rank_has_more_than_one_sample_beyond_another():
    draw = random.Random(4)
    for _ in range(50):
        lengths, ranks = [draw.randint(1, 4000) for _ in range(draw.randint(0, 200))], draw.randint(1, 16)
        found = ranks_by_tokens(lengths, ranks)
        loads = [
            sum(length for length, rank in zip(lengths, found, strict=True) if rank == one) for one in range(ranks)
        ]
        assert max(loads) - min(loads) <= max(lengths, default=0)
        assert sum(loads) == sum(lengths)
