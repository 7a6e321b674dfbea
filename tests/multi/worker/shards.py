"""A rank's tensors as shards: (global name, place in the whole tensor, shape of the whole tensor, values)."""

import torch
from assembly import Shard
from megatron.core.distributed import DistributedDataParallel

from r1train.model.sharded import sharded_tensors


def shards(module: torch.nn.Module) -> list[Shard]:
    """Every parameter and persistent buffer of this rank under its global name, copied."""
    found = []
    for tensor in sharded_tensors(module.sharded_state_dict()):
        lead = tensor.prepend_axis_num
        sizes = zip(tensor.global_offset[lead:], tensor.local_shape, strict=True)
        place = (*tensor.global_offset[:lead], *(slice(start, start + size) for start, size in sizes))
        found.append((tensor.key, place, tuple(tensor.global_shape), tensor.data.detach().cpu().clone()))
    return found


def all_shards(modules: list[torch.nn.Module]) -> list[Shard]:
    """The shards of all chunks of this rank."""
    return [shard for module in modules for shard in shards(module)]


def gradient_shards(chunks: list[DistributedDataParallel]) -> list[Shard]:
    """Every gradient of this rank, after finalize, complete over data-parallel ranks. Overwrites the weights."""
    groups = [group for chunk in chunks for group in [*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups]]
    for buckets in groups:
        group = buckets.intra_distributed_optimizer_instance_group
        for bucket in buckets.buckets:
            # The distributed optimizer leaves each rank its own shard of the summed gradients.
            mine = bucket.grad_data.chunk(group.size())[group.rank()].clone()
            torch.distributed.all_gather_into_tensor(bucket.grad_data, mine, group=group)
    modules = [chunk.module for chunk in chunks]
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        parameter.data.copy_(parameter.main_grad)
    return [shard for shard in all_shards(modules) if not shard[0].endswith("expert_bias")]
