"""Data records -> the micro-batches of one optimizer step, the same number and shape on every data-parallel rank."""

import torch

from r1train.data.batch import PackedBatch, pack
from r1train.dist.comm import largest_count
from r1train.train.forward import MicroBatch


def read_windows(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens and labels [..., S] of windows [..., S + 1], and float32 [..., S], 1 where the label is a target.

    data/pretrain.py says what negative tokens are.
    """
    tokens = torch.where(windows < 0, ~windows, windows)
    return tokens[..., :-1], tokens[..., 1:], (windows[..., 1:] >= 0).float()


def dense_micro_batches(windows: torch.Tensor, micro_batch_size: int) -> list[MicroBatch]:
    """Windows [n, S + 1] of running text -> micro-batches; n is a multiple of the size.

    Every position counts, but for what fills up windows of whole documents.
    """
    batches = []
    for part in windows.split(micro_batch_size):
        tokens, labels, counted = read_windows(part)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        batches.append(MicroBatch(tokens.contiguous(), labels.contiguous(), positions, counted, None, {}))
    return batches


def masked_micro_batches(windows: torch.Tensor, *, eos_id: int) -> list[MicroBatch]:
    """Windows [n, S + 1] -> one micro-batch each, whose documents (up to and with <|eos|>) do not see each other.

    The first token of a document is no target: nothing before it belongs to it.
    """
    return [_masked(window, eos_id) for window in windows]


def _masked(window: torch.Tensor, eos_id: int) -> MicroBatch:
    tokens, labels, counted = read_windows(window)
    length, ends_here = len(tokens), tokens == eos_id
    bounds = (ends_here.nonzero()[:, 0] + 1).tolist()
    cuts = torch.tensor(sorted({0, *bounds, length}), dtype=torch.int32, device=window.device)
    starts = cuts[:-1].repeat_interleave(cuts.diff())
    return MicroBatch(
        tokens=tokens[None],
        labels=labels[None],
        positions=(torch.arange(length, device=window.device) - starts)[None],
        loss_mask=(counted * ~ends_here)[None],
        cu_seqlens=cuts,
        extras={},
    )


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
