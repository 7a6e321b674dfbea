"""How far the engine's log-probabilities are from the trainer's: the gauge that warns before MoE RL collapses."""

import torch
from megatron.core import parallel_state

from r1train.rl.histogram import RatioHistogram
from r1train.rl.kl import bounded_log_ratio, k3
from r1train.train.forward import MicroBatch


def logprob_gap(batches: list[MicroBatch]) -> dict[str, float]:
    """Engine against trainer over all response tokens of all ranks. Collective.

    logprob_gap_mean, _max: |engine - trainer| log-probability; logprob_gap_k3: estimate of KL(engine, trainer);
    engine_ratio/p01, p50, p99, max: of pi_old / mu. The batches carry engine_logprobs and, on the last pipeline stage,
    old_logprobs.
    """
    device = torch.cuda.current_device()
    total, divergence, count, largest = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(4))
    ratios = RatioHistogram(device)
    if parallel_state.is_pipeline_last_stage():
        for batch in batches:
            engine, old, keep = batch.extras["engine_logprobs"], batch.extras["old_logprobs"], batch.loss_mask.bool()
            gap = ((engine - old).abs() * batch.loss_mask).double()
            # In double: k3 of a small ratio is smaller than the rounding of a float.
            log_rho = bounded_log_ratio(old.double(), engine.double(), keep)
            total += gap.sum().to(device)
            divergence += k3(log_rho, log_rho).sum().to(device)
            count += batch.loss_mask.sum().to(device)
            largest = torch.maximum(largest, gap.max().to(device))
            ratios.add(log_rho.flatten(), keep.flatten())
    op = torch.distributed.ReduceOp
    for group in (parallel_state.get_data_parallel_group(), parallel_state.get_pipeline_model_parallel_group()):
        for value in (total, divergence, count):
            torch.distributed.all_reduce(value, op=op.SUM, group=group)
        torch.distributed.all_reduce(largest, op=op.MAX, group=group)
    tokens = count.clamp(min=1)
    return {
        "logprob_gap_mean": (total / tokens).item(),
        "logprob_gap_max": largest.item(),
        "logprob_gap_k3": (divergence / tokens).item(),
        **ratios.reduce().quantiles("engine_ratio"),
    }
