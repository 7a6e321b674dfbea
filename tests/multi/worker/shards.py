"""A rank's tensors as (key, place, values), and their assembly into whole tensors on the side of the test."""

from pathlib import Path

import torch
from megatron.core.distributed import DistributedDataParallel

from r1train.model.sharded import sharded_tensors

Shard = tuple[str, tuple[slice | int, ...], tuple[int, ...], torch.Tensor]


def shards(module: torch.nn.Module) -> list[Shard]:
    """Every parameter and persistent buffer of this rank under its global name, copied."""
    found = []
    for tensor in sharded_tensors(module.sharded_state_dict()):
        lead = tensor.prepend_axis_num
        sizes = zip(tensor.global_offset[lead:], tensor.local_shape, strict=True)
        place = (*tensor.global_offset[:lead], *(slice(start, start + size) for start, size in sizes))
        found.append((tensor.key, place, tuple(tensor.global_shape), tensor.data.detach().clone()))
    return found


def gradient_shards(model: DistributedDataParallel) -> list[Shard]:
    """Every gradient of this rank, after finalize, complete over data-parallel ranks. Overwrites the weights."""
    for buckets in [*model.bucket_groups, *model.expert_parallel_bucket_groups]:
        group = buckets.intra_distributed_optimizer_instance_group
        for bucket in buckets.buckets:
            # The distributed optimizer leaves each rank its own shard of the summed gradients.
            mine = bucket.grad_data.chunk(group.size())[group.rank()].clone()
            torch.distributed.all_gather_into_tensor(bucket.grad_data, mine, group=group)
    for parameter in model.module.parameters():
        parameter.data.copy_(parameter.main_grad)
    return [shard for shard in shards(model.module) if not shard[0].endswith("expert_bias")]


def assemble(parts: list[list[Shard]], *, tolerance: float = 0.0) -> dict[str, torch.Tensor]:
    """Whole tensors from the shards of all ranks; every element is there, and replicas agree within the tolerance."""
    whole: dict[str, torch.Tensor] = {}
    for key, place, shape, values in (shard for part in parts for shard in part):
        target = whole.setdefault(key, torch.full(shape, float("nan")))
        known = ~target[place].isnan()
        assert (target[place] - values)[known].abs().le(tolerance * values.abs().max()).all(), f"replicas of {key}"
        target[place] = values
    holes = [key for key, values in whole.items() if values.isnan().any()]
    assert not holes, holes
    return whole


def load_ranks(folder: Path, part: str, layout: str) -> list[dict]:
    """What every rank of a layout has written for one part of the worker."""
    files = sorted(folder.glob(f"{part}.{layout}.*.pt"))
    assert files, f"no results of {part} for {layout}"
    return [torch.load(file, weights_only=False) for file in files]
