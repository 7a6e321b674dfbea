"""Running micro-batches and an objective through megatron-core's pipeline schedules."""

from collections.abc import Callable
from dataclasses import replace

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from r1train.model.gpt import R1Model
from r1train.model.mtp import take_mtp_loss
from r1train.train.context import ContextCut, cut, put_back, take
from r1train.train.micro_batch import LossOutput, MicroBatch, Objective

__all__ = ["LmObjective", "LossOutput", "MicroBatch", "Objective", "forward_backward", "forward_only"]


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
        loss_sum, mtp = (output.float() * batch.loss_mask).sum(), take_mtp_loss()
        logs, counts = {"loss": loss_sum.detach()}, {}
        if mtp is not None:
            logs["mtp_loss"], counts["mtp_loss"] = mtp
        return LossOutput(loss_sum, batch.loss_mask.sum().int(), logs, counts)


def run_schedule(
    model: torch.nn.Module | list[torch.nn.Module],
    batches: list[MicroBatch],
    *,
    step_fn: Callable,
    forward_only: bool,
) -> list[object]:
    """Run every micro-batch through the pipeline; returns what the last stage stored, [] on other stages.

    All ranks pass the same number of micro-batches of one shape, not none. step_fn(iterator, model) -> (output, loss
    closure).
    """
    assert batches, "nothing to run: the caller skips steps without data"
    chunks = model if isinstance(model, list) else [model]
    b, s = batches[0].tokens.shape
    return get_forward_backward_func()(
        forward_step_func=step_fn,
        # Every virtual stage reads the same micro-batches in the same order.
        data_iterator=[iter(batches) for _ in chunks] if len(chunks) > 1 else iter(batches),
        model=chunks,
        num_microbatches=len(batches),
        seq_length=s * parallel_state.get_context_parallel_world_size(),
        micro_batch_size=b,
        forward_only=forward_only,
    )


def forward_backward(
    model: torch.nn.Module | list[torch.nn.Module], batches: list[MicroBatch], objective: Objective
) -> list[LossOutput]:
    """Gradients of one step, divided by the global token count; one LossOutput per micro-batch (last stage).

    model: one chunk, or those of the virtual stages. Under context parallelism a LossOutput is of this rank's part.
    """

    def step_fn(iterator, wrapped_model, return_schedule_plan=False):
        batch = next(iterator)

        def loss_closure(output):
            result = objective.loss(output, batch)
            detached = replace(result, loss_sum=result.loss_sum.detach())
            return result.loss_sum, result.num_tokens, detached

        # With overlap_expert_all_to_all megatron-core wants the forward's plan, made from the same arguments.
        run = wrapped_model.build_schedule_plan if return_schedule_plan else wrapped_model
        return objective.forward(run, batch), loss_closure

    batches, _ = _on_this_rank(batches)
    take_mtp_loss()  # of a forward that no step belonged to
    return run_schedule(model, batches, step_fn=step_fn, forward_only=False)


@torch.no_grad()
def forward_only(
    model: torch.nn.Module | list[torch.nn.Module], batches: list[MicroBatch], objective: Objective
) -> list[torch.Tensor]:
    """The objective's per-token output [b, s] for every micro-batch, on the last pipeline stage ([] elsewhere)."""

    def step_fn(iterator, wrapped_model):
        batch = next(iterator)

        def keep(output):
            return output.sum(), torch.zeros((), dtype=torch.int), output

        return objective.forward(wrapped_model, batch), keep

    mine, cuts = _on_this_rank(batches)
    outputs = run_schedule(model, mine, step_fn=step_fn, forward_only=True)
    if not cuts or not outputs:
        return outputs
    return [
        _whole(output, shared, batch.tokens.shape[1])
        for output, shared, batch in zip(outputs, cuts, batches, strict=True)
    ]


def _on_this_rank(batches: list[MicroBatch]) -> tuple[list[MicroBatch], list[ContextCut]]:
    """What this context-parallel rank computes, and how the micro-batches were cut; as they are without such ranks."""
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return batches, []
    tp_size, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_context_parallel_rank()
    cuts = [cut(batch, cp_size=size, tp_size=tp_size) for batch in batches]
    return [take(batch, shared, rank) for batch, shared in zip(batches, cuts, strict=True)], cuts


def _whole(output: torch.Tensor, shared: ContextCut, length: int) -> torch.Tensor:
    group = parallel_state.get_context_parallel_group()
    parts = [torch.empty_like(output) for _ in range(group.size())]
    torch.distributed.all_gather(parts, output.contiguous(), group=group)
    return put_back(parts, shared, length)
