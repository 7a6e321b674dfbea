"""The side of the tests: what the ranks wrote, and whole tensors from their shards. Does not import megatron-core."""

from functools import lru_cache
from pathlib import Path

import torch

# Global name, place in the whole tensor, shape of the whole tensor, values.
Shard = tuple[str, tuple[slice | int, ...], tuple[int, ...], torch.Tensor]


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


@lru_cache(maxsize=16)  # many tests look at one part of one layout; none of them changes it
def load_ranks(folder: Path, part: str, layout: str) -> list[dict]:
    """What every rank of a layout has written for one part of the worker."""
    files = sorted(folder.glob(f"{part}.{layout}.*.pt"))
    assert files, f"no results of {part} for {layout}"
    return [torch.load(file, weights_only=False) for file in files]
