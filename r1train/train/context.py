"""Context parallelism: which tokens of a micro-batch a rank computes.

Every sequence is cut into 2 cp equal parts and rank r takes parts r and 2 cp - 1 - r, so that all ranks see as many
earlier tokens (the order that Transformer Engine's ring attention expects). Packed rows are cut segment by segment;
segments that do not divide get padding, which counts in no loss and is left out of the routers' statistics.
"""

from dataclasses import dataclass, replace

import torch

from r1train.config.widths import TOKENS
from r1train.train.micro_batch import MicroBatch


@dataclass(frozen=True)
class ContextCut:
    """places: int64 [cp_size, s / cp_size], which token of the row each rank computes, -1 where it is padding.

    cu_seqlens: int32 [n + 1] of the padded row over all ranks; None for dense rows.
    """

    places: torch.Tensor
    cu_seqlens: torch.Tensor | None


def cut(batch: MicroBatch, *, cp_size: int, tp_size: int) -> ContextCut:
    """How the ranks share a micro-batch.

    Dense rows are multiples of 2 cp tp tokens. Packed rows are padded to one of TOKENS cp tp, so that a rank's part is
    whole units of FP8, too.
    """
    if batch.cu_seqlens is None:
        row, cu_seqlens = torch.arange(batch.tokens.shape[1]), None
        segments = [row]
    else:
        bounds = batch.cu_seqlens.tolist()
        segments = [
            _padded(torch.arange(start, end), 2 * cp_size) for start, end in zip(bounds, bounds[1:], strict=False)
        ]
        total = sum(len(segment) for segment in segments)
        short = -total % (TOKENS * cp_size * tp_size)
        segments[-1] = torch.cat([segments[-1], torch.full((short,), -1)])
        ends = torch.tensor([len(segment) for segment in segments]).cumsum(0)
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), ends]).int()
    parts = [segment.chunk(2 * cp_size) for segment in segments]
    places = [
        torch.cat([torch.cat([part[rank], part[2 * cp_size - 1 - rank]]) for part in parts]) for rank in range(cp_size)
    ]
    return ContextCut(torch.stack(places), cu_seqlens)


def _padded(places: torch.Tensor, multiple: int) -> torch.Tensor:
    return torch.cat([places, torch.full((-len(places) % multiple,), -1)])


def take(batch: MicroBatch, shared: ContextCut, cp_rank: int) -> MicroBatch:
    """The part of the micro-batch that this rank computes: [b, s / cp]; cu_seqlens stay those of the whole row."""
    places = shared.places[cp_rank].to(batch.tokens.device)
    padding = places < 0
    chosen = places.clamp(min=0)

    def part(values: torch.Tensor) -> torch.Tensor:
        return values[:, chosen].masked_fill(padding, 0)

    mask = batch.padding_mask()
    if mask is not None:
        mask = mask[:, chosen] | padding
        mask[0, 0] &= ~mask.all()
    return replace(
        batch,
        tokens=part(batch.tokens),
        labels=part(batch.labels),
        positions=part(batch.positions),
        loss_mask=part(batch.loss_mask),
        cu_seqlens=None if shared.cu_seqlens is None else shared.cu_seqlens.to(places.device),
        extras={name: part(extra) for name, extra in batch.extras.items()},
        padding=mask,
    )


def put_back(parts: list[torch.Tensor], shared: ContextCut, length: int) -> torch.Tensor:
    """The inverse of take for per-token values: every rank's [b, s / cp] -> [b, length], padding dropped."""
    whole = parts[0].new_zeros(parts[0].shape[0], length)
    for values, places in zip(parts, shared.places.to(whole.device), strict=True):
        real = places >= 0
        whole[:, places[real]] = values[:, real]
    return whole
