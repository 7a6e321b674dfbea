"""Small Python objects of every data-parallel rank, on every rank."""

import pickle
from typing import Any

import torch
from megatron.core import parallel_state


def gather_objects(local: Any) -> list[Any]:
    """What each data-parallel rank brings, in the order of the ranks, as the last pipeline stage knows it. Collective.

    Stages generate the same samples, but each has its own graders: decisions that all have to share come from one.
    """
    group = parallel_state.get_data_parallel_group()
    parts: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(parts, local, group=group)
    stages = parallel_state.get_pipeline_model_parallel_group()
    if stages.size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast_object_list(parts, src=last, group=stages)
    return parts


def common_places(places: set[int]) -> set[int]:
    """The places that every pipeline stage of this data-parallel rank brings: stages sample together. Collective."""
    stages = parallel_state.get_pipeline_model_parallel_group()
    parts: list[Any] = [None] * stages.size()
    torch.distributed.all_gather_object(parts, places, group=stages)
    return set.intersection(*parts)


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
