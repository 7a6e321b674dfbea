"""Entropy of the next-token distribution, exact, from logits that may be split over tensor-parallel ranks."""

import torch
from torch import Tensor

# Logits that are looked at together: what the measurement holds for a moment, whatever the length of the row.
CHUNK_VALUES = 2**25


@torch.no_grad()
def entropy_of_logits(
    logits: Tensor,
    *,
    temperature: float,
    group: torch.distributed.ProcessGroup | None,
    chunk_values: int = CHUNK_VALUES,
) -> Tensor:
    """Logits [..., V / tp] -> entropy [...], float32, in nats, of softmax(logits / temperature) over the whole V.

    group: the ranks that hold the other parts of the vocabulary, None where this rank holds all of it. Carries no
    gradient and keeps nothing for a backward pass.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    parts = rows.split(max(1, chunk_values // rows.shape[1]))
    return torch.cat([_entropy(part.float() / temperature, group) for part in parts]).view(logits.shape[:-1])


def _entropy(scaled: Tensor, group: torch.distributed.ProcessGroup | None) -> Tensor:
    """ln Z - sum(e^z z) / Z, with z shifted by the largest logit of all ranks: [rows, V / tp] -> [rows]."""
    largest = scaled.amax(dim=-1)
    if group is not None:
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
    shifted = scaled - largest[:, None]
    weight = shifted.exp()
    sums = torch.stack([weight.sum(dim=-1), (weight * shifted).sum(dim=-1)])
    if group is not None:
        torch.distributed.all_reduce(sums, group=group)
    return sums[0].log() - sums[1] / sums[0]
