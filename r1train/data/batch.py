"""PackedBatch: isolated samples side by side in one row of T tokens, what SFT and RL train on.

Alignment: position t predicts label t, the next token of the same sample. loss_mask and extras belong to the label, so
the values of token k of a sample stand at position k - 1, and a sample's last position has mask 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from r1train.data.chat import Sample


@dataclass(frozen=True)
class PackedBatch:
    """tokens, labels, positions: int64 [T]; loss_mask: float32 [T]; cu_seqlens: int32 [n + 1], from 0 to T.

    positions count from 0 in every segment. The last segment is padding when the samples do not fill T.
    extras: float32 [T].
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    extras: dict[str, torch.Tensor]

    @property
    def max_seqlen(self) -> int:
        """Length of the longest segment."""
        return int(self.cu_seqlens.diff().max())

    @property
    def num_targets(self) -> float:
        """Tokens that count in the loss."""
        return float(self.loss_mask.sum())

    def to(self, device: torch.device | str) -> "PackedBatch":
        extras = {name: value.to(device) for name, value in self.extras.items()}
        return PackedBatch(
            tokens=self.tokens.to(device),
            labels=self.labels.to(device),
            loss_mask=self.loss_mask.to(device),
            positions=self.positions.to(device),
            cu_seqlens=self.cu_seqlens.to(device),
            extras=extras,
        )


def pack(samples: Sequence[Sample], *, seq_length: int, pad_id: int) -> PackedBatch:
    """Lay samples side by side in the order given; no samples at all gives a row of padding.

    Together they must fit seq_length and carry the same extras.
    """
    used = sum(len(sample.tokens) for sample in samples)
    assert used <= seq_length, f"{used} tokens in a row of {seq_length}"
    names = set(samples[0].extras) if samples else set()
    assert all(set(sample.extras) == names for sample in samples)
    tokens = np.full(seq_length, pad_id, dtype=np.int64)
    labels = np.full(seq_length, pad_id, dtype=np.int64)
    positions = np.arange(seq_length, dtype=np.int64)
    per_label = {name: np.zeros(seq_length, dtype=np.float32) for name in ("", *sorted(names))}
    bounds = [0]
    for sample in samples:
        start, end = bounds[-1], bounds[-1] + len(sample.tokens)
        tokens[start:end] = sample.tokens
        labels[start : end - 1] = sample.tokens[1:]
        positions[start:end] -= start
        for name, target in per_label.items():
            target[start : end - 1] = (sample.extras[name] if name else sample.trained)[1:]
        bounds.append(end)
    if used < seq_length:
        positions[used:] -= used
        bounds.append(seq_length)
    loss_mask = per_label.pop("")
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        loss_mask=torch.from_numpy(loss_mask),
        positions=torch.from_numpy(positions),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        extras={name: torch.from_numpy(value) for name, value in per_label.items()},
    )
