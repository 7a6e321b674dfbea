"""The reference is the policy after the update, also where weights are gathered late: two ranks of data parallelism."""

from pathlib import Path

import torch
from assembly import load_ranks


def test_every_rank_has_the_updated_weights(results: Path):
    """Each rank updates its shard of the weights; without a gather half of the tensors stayed as they were."""
    ranks = load_ranks(results, "refresh", "dp2_overlap")
    for rank in ranks:
        assert rank["moved_by_itself"] == [] and rank["not_the_policy"] == []
        assert rank["moved"] == rank["parameters"] > 50
    first, second = (rank["weights"] for rank in ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
