"""How far the engine's log-probabilities are from the trainer's: the gauge that warns before MoE RL collapses."""

import torch
from megatron.core import parallel_state

from r1train.train.forward import MicroBatch


def logprob_gap(batches: list[MicroBatch]) -> dict[str, float]:
    """Mean and largest |engine - trainer| log-probability over all response tokens of all ranks. Collective.

    The batches carry engine_logprobs and, on the last pipeline stage, old_logprobs.
    """
    device = torch.cuda.current_device()
    total, count, largest = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
    if parallel_state.is_pipeline_last_stage():
        for batch in batches:
            gap = ((batch.extras["engine_logprobs"] - batch.extras["old_logprobs"]).abs() * batch.loss_mask).double()
            total += gap.sum().to(device)
            count += batch.loss_mask.sum().to(device)
            largest = torch.maximum(largest, gap.max().to(device))
    op = torch.distributed.ReduceOp
    for group in (parallel_state.get_data_parallel_group(), parallel_state.get_pipeline_model_parallel_group()):
        torch.distributed.all_reduce(total, op=op.SUM, group=group)
        torch.distributed.all_reduce(count, op=op.SUM, group=group)
        torch.distributed.all_reduce(largest, op=op.MAX, group=group)
    return {"logprob_gap_mean": (total / count.clamp(min=1)).item(), "logprob_gap_max": largest.item()}
