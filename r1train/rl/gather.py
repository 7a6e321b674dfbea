"""Small Python objects of every data-parallel rank, on every rank."""

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
