"""Agreements between ranks."""

import torch
from megatron.core import parallel_state
from torch.distributed import ProcessGroup


def largest_count(count: int) -> int:
    """The largest count of any data-parallel rank: what all of them have to keep up with. Collective."""
    return largest_counts([count])[0]


def largest_counts(counts: list[int]) -> list[int]:
    """largest_count of several counts at once. Collective."""
    largest = torch.tensor(counts, device=torch.cuda.current_device())
    group = parallel_state.get_data_parallel_group()
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
    return largest.tolist()


def of_rank[T](value: T, src: int, group: ProcessGroup | None = None) -> T:
    """The value that global rank `src` brings, on every rank of the group, by default of the job. Collective."""
    box = [value]
    if torch.distributed.get_world_size(group) > 1:
        torch.distributed.broadcast_object_list(box, src=src, group=group)
    return box[0]
