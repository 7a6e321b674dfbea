"""Micro-batches, objectives, and running them through megatron-core's pipeline schedules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from r1train.model.gpt import R1Model


@dataclass(frozen=True)
class MicroBatch:
    """What one forward takes. b sequences of s tokens; packed batches have b = 1 and cu_seqlens [n + 1] int32.

    tokens, labels, positions: [b, s] int64; loss_mask: [b, s] float32, 1 where the label counts.
    extras: further [b, s] tensors that the objective asks for (advantages, old log-probabilities).
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    loss_mask: torch.Tensor
    cu_seqlens: torch.Tensor | None
    extras: dict[str, torch.Tensor]

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
        if self.cu_seqlens is None:
            return None
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
        )


@dataclass(frozen=True)
class LossOutput:
    """loss_sum: scalar to minimise, summed over tokens; num_tokens: int scalar, its share of the global divisor.

    logs: scalars summed over tokens; they are reported divided by the global num_tokens.
    """

    loss_sum: torch.Tensor
    num_tokens: torch.Tensor
    logs: dict[str, torch.Tensor]


class Objective(Protocol):
    """What a stage trains on: pre-training, SFT, reward model and GRPO differ only here."""

    def forward(self, model: R1Model, batch: MicroBatch) -> torch.Tensor:
        """Per-token output [b, s] on the last pipeline stage, hidden states before it."""

    def loss(self, output: torch.Tensor, batch: MicroBatch) -> LossOutput:
        """The last stage's output -> sums over this micro-batch's tokens."""


class LmObjective:
    """Cross entropy of the next token, plus MTP's loss, which megatron-core adds inside the model (V3 eq. 24-25)."""

    def forward(self, model: R1Model, batch: MicroBatch) -> torch.Tensor:
        return model(
            batch.tokens,
            batch.positions,
            None,
            labels=batch.labels,
            loss_mask=batch.loss_mask,
            padding_mask=batch.padding_mask(),
            packed_seq_params=batch.packed_seq_params(),
        )

    def loss(self, output: torch.Tensor, batch: MicroBatch) -> LossOutput:
        loss_sum = (output.float() * batch.loss_mask).sum()
        return LossOutput(loss_sum, batch.loss_mask.sum().int(), {"loss": loss_sum.detach()})


def run_schedule(
    model: torch.nn.Module, batches: list[MicroBatch], *, step_fn: Callable, forward_only: bool
) -> list[object]:
    """Run every micro-batch through the pipeline; returns what the last stage stored, [] on other stages.

    All ranks pass the same number of micro-batches of one shape. step_fn(iterator, model) -> (output, loss closure).
    """
    b, s = batches[0].tokens.shape
    return get_forward_backward_func()(
        forward_step_func=step_fn,
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=s,
        micro_batch_size=b,
        forward_only=forward_only,
    )


def forward_backward(model: torch.nn.Module, batches: list[MicroBatch], objective: Objective) -> list[LossOutput]:
    """Gradients of one step, divided by the global token count; one LossOutput per micro-batch (last stage)."""

    def step_fn(iterator, wrapped_model):
        batch = next(iterator)

        def loss_closure(output):
            result = objective.loss(output, batch)
            detached = LossOutput(result.loss_sum.detach(), result.num_tokens, result.logs)
            return result.loss_sum, result.num_tokens, detached

        return objective.forward(wrapped_model, batch), loss_closure

    return run_schedule(model, batches, step_fn=step_fn, forward_only=False)


@torch.no_grad()
def forward_only(model: torch.nn.Module, batches: list[MicroBatch], objective: Objective) -> list[torch.Tensor]:
    """The objective's per-token output for every micro-batch, on the last pipeline stage ([] elsewhere)."""

    def step_fn(iterator, wrapped_model):
        batch = next(iterator)

        def keep(output):
            return output.sum(), torch.zeros((), dtype=torch.int), output

        return objective.forward(wrapped_model, batch), keep

    return run_schedule(model, batches, step_fn=step_fn, forward_only=True)
