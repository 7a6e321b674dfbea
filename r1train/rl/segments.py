"""Sums and means over the sequences of a packed row: what algorithms with a ratio per sequence need.

Shapes: T packed tokens of one micro-batch, n segments (sequences and at most one stretch of padding).
"""

import torch
from torch import Tensor


def segment_ids(cu_seqlens: Tensor) -> Tensor:
    """Bounds int32 [n + 1], from 0 to T -> the segment of every token, int64 [T]."""
    lengths = cu_seqlens.diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)


def segment_sum(values: Tensor, segments: Tensor) -> Tensor:
    """Sum of values [T] over each token's own segment, given back to every token [T]; float64 inside."""
    if values.numel() == 0:
        return values
    sums = torch.zeros(int(segments.max()) + 1, dtype=torch.float64, device=values.device)
    return sums.index_add(0, segments, values.double())[segments].to(values.dtype)


def segment_mean(values: Tensor, keep: Tensor, segments: Tensor) -> Tensor:
    """Mean of values [T] over the tokens of each token's segment that keep [T] marks; 0 where it marks none."""
    total = segment_sum(torch.where(keep, values, 0.0), segments)
    return total / segment_sum(keep.to(values.dtype), segments).clamp(min=1.0)
