"""Token weights: hand numbers, and the same aggregate however the sequences are split."""

import pytest
import torch

from r1train.rl.aggregate import GlobalCounts, token_weights

LENGTHS = [1, 4, 2, 3]
COUNTS = GlobalCounts(sequences=4, tokens=10, max_response_tokens=8)
RULES = ["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]
# Loss of sequence i is i + 1 at each of its tokens.
# Sequence means 1, 2, 3, 4 -> 10 / 4. Token sums 1, 8, 6, 12 = 27 -> 27 / 10, and 27 / (4 * 8).
EXPECTED = {"seq-mean-token-mean": 2.5, "token-mean": 2.7, "seq-mean-token-sum-norm": 0.84375}


def aggregate(split, rule):
    """Sum of weight * loss over micro-batches, each a list of sequence numbers, with two prompt tokens before each."""
    total = 0.0
    for sequences in split:
        ids, losses = [], []
        for local, sequence in enumerate(sequences):
            ids += [-1, -1] + [local] * LENGTHS[sequence]
            losses += [100.0, 100.0] + [sequence + 1.0] * LENGTHS[sequence]
        lengths = torch.tensor([LENGTHS[sequence] for sequence in sequences])
        weights = token_weights(torch.tensor(ids), lengths, counts=COUNTS, aggregation=rule)
        assert weights.dtype == torch.float32
        total += (weights.double() * torch.tensor(losses, dtype=torch.float64)).sum().item()
    return total


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("split", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[3, 0], [2, 1]], [[1], [0, 2, 3]]])
def test_split_does_not_matter(split, rule):
    assert aggregate(split, rule) == pytest.approx(EXPECTED[rule], rel=1e-6)


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        ("seq-mean-token-mean", [0.0, 0.125, 0.125, 0.25, 0.0]),
        ("token-mean", [0.0, 1 / 3, 1 / 3, 1 / 3, 0.0]),
        ("seq-mean-token-sum-norm", [0.0, 0.025, 0.025, 0.025, 0.0]),
    ],
)
def test_weights_by_hand(rule, weights):
    counts = GlobalCounts(sequences=4, tokens=3, max_response_tokens=10)
    result = token_weights(torch.tensor([-1, 0, 0, 1, -1]), torch.tensor([2, 1]), counts=counts, aggregation=rule)
    assert result.tolist() == pytest.approx(weights, rel=1e-6)


def test_part_of_a_sequence_keeps_the_whole_length():
    # Two context-parallel ranks hold 3 and 1 tokens of a sequence of 4.
    counts = GlobalCounts(sequences=1, tokens=4, max_response_tokens=8)
    parts = [
        token_weights(torch.tensor(ids), torch.tensor([4]), counts=counts, aggregation="seq-mean-token-mean")
        for ids in ([0, 0, 0], [0, -1])
    ]
    assert [part.tolist() for part in parts] == [[0.25, 0.25, 0.25], [0.25, 0.0]]


def test_unknown_rule():
    with pytest.raises(ValueError, match="'mean' is not known"):
        token_weights(torch.tensor([0]), torch.tensor([1]), counts=COUNTS, aggregation="mean")
