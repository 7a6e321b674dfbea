"""Agreements between data-parallel ranks."""

import torch
from megatron.core import parallel_state


def largest_count(count: int) -> int:
    """The largest count of any data-parallel rank: what all of them have to keep up with. Collective."""
    return largest_counts([count])[0]


def largest_counts(counts: list[int]) -> list[int]:
    """largest_count of several counts at once. Collective."""
    largest = torch.tensor(counts, device=torch.cuda.current_device())
    group = parallel_state.get_data_parallel_group()
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
    return largest.tolist()
