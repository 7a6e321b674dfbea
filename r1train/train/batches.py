"""Data records -> the micro-batches of one optimizer step, the same number and shape on every data-parallel rank."""

import torch

from r1train.data.batch import PackedBatch, pack
from r1train.dist.comm import largest_count
from r1train.train.forward import MicroBatch


def dense_micro_batches(windows: torch.Tensor, micro_batch_size: int) -> list[MicroBatch]:
    """Windows [n, S + 1] of running text -> micro-batches whose every position counts; n is a multiple of the size."""
    batches = []
    for part in windows.split(micro_batch_size):
        tokens, labels = part[:, :-1].contiguous(), part[:, 1:].contiguous()
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        batches.append(MicroBatch(tokens, labels, positions, torch.ones(tokens.shape), None, {}))
    return batches


def packed_micro_batches(rows: list[PackedBatch], *, seq_length: int, pad_id: int) -> list[MicroBatch]:
    """One micro-batch per packed row; ranks with fewer rows than the fullest get rows of padding. Collective."""
    names = sorted(rows[0].extras) if rows else []
    empty = pack([], seq_length=seq_length, pad_id=pad_id)
    padding = [empty] * (largest_count(len(rows)) - len(rows))
    return [_micro_batch(row, names) for row in [*rows, *padding]]


def _micro_batch(row: PackedBatch, names: list[str]) -> MicroBatch:
    nothing = torch.zeros_like(row.loss_mask)
    return MicroBatch(
        tokens=row.tokens[None],
        labels=row.labels[None],
        positions=row.positions[None],
        loss_mask=row.loss_mask[None],
        cu_seqlens=row.cu_seqlens,
        extras={name: row.extras.get(name, nothing)[None] for name in names},
    )
