"""How far the engine's log-probabilities are from the trainer's: the gauge that warns before MoE RL collapses."""

import math

import torch
from megatron.core import parallel_state
from torch import Tensor

from r1train.rl.histogram import RatioHistogram
from r1train.rl.kl import bounded_log_ratio, k3
from r1train.train.forward import MicroBatch


class LogprobGap:
    """Engine against trainer over response tokens, added up over micro-batches; only the last pipeline stage adds."""

    def __init__(self, device: torch.device | str | int):
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # |gap|, k3, tokens
        self._largest = torch.zeros((), dtype=torch.float64, device=device)
        self._ratios = RatioHistogram(device)

    def add(self, engine: Tensor, trainer: Tensor, mask: Tensor) -> None:
        """Log-probabilities and the loss mask, all of one shape."""
        keep, device = mask.bool(), self._sums.device
        gap = ((engine - trainer).abs() * mask).double()
        # In double: k3 of a small ratio is smaller than the rounding of a float.
        log_rho = bounded_log_ratio(trainer.double(), engine.double(), keep)
        self._sums += torch.stack([gap.sum(), k3(log_rho, log_rho).sum(), mask.sum().double()]).to(device)
        self._largest = torch.maximum(self._largest, gap.max().to(device))
        self._ratios.add(log_rho.flatten(), keep.flatten())

    def reduce(self, tokens: torch.distributed.ProcessGroup) -> dict[str, float]:
        """Over all ranks; tokens: the group whose ranks have added different ones. Collective, once per object.

        logprob_gap_mean, _max: |engine - trainer| log-probability; logprob_gap_k3: estimate of KL(engine, trainer);
        engine_ratio/p01, p50, p99, max: of pi_old / mu.
        """
        op = torch.distributed.ReduceOp
        for group in (tokens, parallel_state.get_pipeline_model_parallel_group()):
            torch.distributed.all_reduce(self._sums, op=op.SUM, group=group)
            torch.distributed.all_reduce(self._largest, op=op.MAX, group=group)
        total, divergence, count = self._sums.tolist()
        return {
            "logprob_gap_mean": total / max(count, 1.0),
            # Not every backend's maximum of NaN and a number is NaN; the sum always is.
            "logprob_gap_max": math.nan if math.isnan(total) else self._largest.item(),
            "logprob_gap_k3": divergence / max(count, 1.0),
            **self._ratios.reduce().quantiles("engine_ratio"),
        }


def logprob_gap(batches: list[MicroBatch]) -> dict[str, float]:
    """LogprobGap of whole rows that carry engine_logprobs and, on the last pipeline stage, old_logprobs. Collective."""
    gap = LogprobGap(torch.cuda.current_device())
    if parallel_state.is_pipeline_last_stage():
        for batch in batches:
            gap.add(batch.extras["engine_logprobs"], batch.extras["old_logprobs"], batch.loss_mask)
    return gap.reduce(parallel_state.get_data_parallel_group())
