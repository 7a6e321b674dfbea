"""The samples of a minibatch over data-parallel ranks, by tokens: a rank that generated little does not wait."""

import heapq
from collections.abc import Sequence

from megatron.core import parallel_state

from r1train.rl.batch import TrainSample
from r1train.rl.gather import exchange_objects, gather_objects


def ranks_by_tokens(lengths: Sequence[int], ranks: int) -> list[int]:
    """The rank of every sample: longest first, each to the rank with the fewest tokens so far, the first of several."""
    loads = [(0, rank) for rank in range(ranks)]
    found = [0] * len(lengths)
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        tokens, rank = loads[0]
        found[place] = rank
        heapq.heapreplace(loads, (tokens + lengths[place], rank))
    return found


def deal(samples: list[TrainSample]) -> list[TrainSample]:
    """This rank's share of what all data-parallel ranks bring: the same samples over all, nearly as many tokens each.

    Samples travel with all that they hold, logprobs, advantages and routes. Collective; the order is the ranks' order.
    """
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    if size == 1:
        return samples
    lengths = gather_objects([len(sample.prompt) + len(sample.response) for sample in samples])
    ranks = ranks_by_tokens([length for part in lengths for length in part], size)
    before = sum(map(len, lengths[:rank]))
    mine = ranks[before : before + len(samples)]
    outgoing = [
        [sample for sample, goes_to in zip(samples, mine, strict=True) if goes_to == target != rank]
        for target in range(size)
    ]
    parts = exchange_objects(outgoing)
    parts[rank] = [sample for sample, goes_to in zip(samples, mine, strict=True) if goes_to == rank]
    return [sample for part in parts for sample in part]
