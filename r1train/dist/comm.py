"""Agreements between ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core import parallel_state
from torch.distributed import ProcessGroup

from r1train.errors import R1TrainError


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


def gathered[T](value: T, group: ProcessGroup | None = None) -> list[T]:
    """What each rank of the group, by default of the job, brings, in their order, on every rank. Collective."""
    parts: list[T] = [value] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(parts, value, group=group)
    return parts


@contextmanager
def raised_by_all() -> Iterator[None]:
    """An R1TrainError that a rank raises inside, the first such rank's, is raised by every rank of the job. Collective.

    Nothing inside may be collective: a rank that raises leaves it at once.
    """
    mine: R1TrainError | None = None
    try:
        yield
    except R1TrainError as error:
        mine = error
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    first = torch.tensor(world_size if mine is None else rank, device=torch.cuda.current_device())
    torch.distributed.all_reduce(first, op=torch.distributed.ReduceOp.MIN)
    if first < world_size:
        found = of_rank(mine, int(first))
        assert found is not None, "that rank has one"
        raise found if mine is None else mine
