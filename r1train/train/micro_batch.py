"""What a forward takes and gives: micro-batches, objectives and their sums."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from r1train.model.gpt import R1Model


@dataclass(frozen=True)
class MicroBatch:
    """What one forward takes. b sequences of s tokens; packed batches have b = 1 and cu_seqlens [n + 1] int32.

    tokens, labels, positions: [b, s] int64; loss_mask: [b, s] float32, 1 where the label counts.
    extras: further [b, s] tensors that the objective asks for (advantages, old log-probabilities).
    padding: bool [b, s] where it is known better than from the loss mask (train/context.py).
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    loss_mask: torch.Tensor
    cu_seqlens: torch.Tensor | None
    extras: dict[str, torch.Tensor]
    padding: torch.Tensor | None = None

    def packed_seq_params(self) -> PackedSeqParams | None:
        if self.cu_seqlens is None:
            return None
        longest = int(self.cu_seqlens.diff().max())
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=self.cu_seqlens,
            cu_seqlens_kv=self.cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )

    def padding_mask(self) -> torch.Tensor | None:
        """bool [1, s], true where a packed row is padding: segments without a label that counts; None for dense rows.

        The router leaves padding out of its sequence loss and its load statistics. In a row that is all padding the
        first token stays in, because megatron-core divides by the number of the others.
        """
        if self.padding is not None or self.cu_seqlens is None:
            return self.padding
        lengths = self.cu_seqlens.diff()
        segment = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        counted = torch.zeros(len(lengths), device=lengths.device).index_add(0, segment, self.loss_mask[0])
        padding = (counted == 0)[segment]
        padding[0] &= ~padding.all()
        return padding[None]

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(
            self.tokens.to(device),
            self.labels.to(device),
            self.positions.to(device),
            self.loss_mask.to(device),
            None if self.cu_seqlens is None else self.cu_seqlens.to(device),
            {name: extra.to(device) for name, extra in self.extras.items()},
            None if self.padding is None else self.padding.to(device),
        )


@dataclass(frozen=True)
class LossOutput:
    """loss_sum: scalar to minimise, summed over tokens; num_tokens: int scalar, its share of the global divisor.

    logs: scalars summed over tokens; they are reported divided by the global num_tokens, or by the sum of their own
    counts where they have some.
    """

    loss_sum: torch.Tensor
    num_tokens: torch.Tensor
    logs: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What a stage trains on: pre-training, SFT, reward model and GRPO differ only here."""

    def forward(self, model: R1Model, batch: MicroBatch) -> torch.Tensor:
        """Per-token output [b, s] on the last pipeline stage, hidden states before it."""

    def loss(self, output: torch.Tensor, batch: MicroBatch) -> LossOutput:
        """The last stage's output -> sums over this micro-batch's tokens."""
