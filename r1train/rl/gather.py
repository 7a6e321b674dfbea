"""Small Python objects of every data-parallel rank, on every rank."""

import pickle
from typing import Any

import torch
from megatron.core import parallel_state

from r1train.dist.comm import gathered, of_rank


def gather_objects(local: Any) -> list[Any]:
    """What each data-parallel rank brings, in the order of the ranks, as one rank of its replica knows it. Collective.

    Ranks of one replica generate the same samples; what all have to share comes from the one that decides.
    """
    return from_deciding_rank(gathered(local, parallel_state.get_data_parallel_group()))


def decides() -> bool:
    """Whether this is the replica's rank that decides: on the last pipeline stage, the first tensor-parallel one."""
    return parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0


def from_deciding_rank[T](value: T) -> T:
    """The value of the rank of this replica that decides. Collective over the replica."""
    stages = parallel_state.get_pipeline_model_parallel_group()
    return from_first_tensor_rank(of_rank(value, parallel_state.get_pipeline_model_parallel_last_rank(), stages))


def from_first_tensor_rank[T](value: T) -> T:
    """The value of the replica's first tensor-parallel rank: one loss is computed by all of them. Collective."""
    group = parallel_state.get_tensor_model_parallel_group()
    return of_rank(value, torch.distributed.get_global_rank(group, 0), group)


def common_places(places: set[int]) -> set[int]:
    """The places that every rank of this replica brings: its stages and tensor-parallel ranks sample together.

    Collective.
    """
    return set.intersection(*gathered(places, parallel_state.get_model_parallel_group()))


def exchange_objects(outgoing: list[Any]) -> list[Any]:
    """What each data-parallel rank has for this one, in the order of the ranks; outgoing: for each of them. Collective.

    Only what is sent to a rank goes there, so samples with their routes may travel.
    """
    group, device = parallel_state.get_data_parallel_group(), torch.cuda.current_device()
    packed = [pickle.dumps(one) for one in outgoing]
    sent = torch.tensor([len(one) for one in packed], device=device)
    received = torch.empty_like(sent)
    torch.distributed.all_to_all_single(received, sent, group=group)
    sizes = received.tolist()
    data = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    mine = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8).to(device)
    torch.distributed.all_to_all_single(data, mine, sizes, sent.tolist(), group=group)
    return [pickle.loads(part.numpy().tobytes()) for part in data.cpu().split(sizes)]
