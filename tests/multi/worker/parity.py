"""Loss, every gradient and the updated expert biases of one step: full windows, and windows with uneven loss masks."""

from dataclasses import replace
from pathlib import Path

import torch
from megatron.core import parallel_state
from shards import gradient_shards, shards
from tiny import config, set_expert_bias, windows

from r1train.dist.init import Device
from r1train.train.batches import dense_micro_batches
from r1train.train.forward import LmObjective, MicroBatch, forward_backward
from r1train.train.setup import build_trainer
from r1train.train.step import reduce_logs

LAYOUTS = ("single", "dp2", "ep2", "pp2", "tp2", "pp2_ep2", "tp2_ep2")
MICRO_BATCHES = 4
COUNTED = (32, 5, 21, 11)  # tokens that count in each sequence of micro-batch i: uneven between data-parallel ranks


def micro_batches(*, uneven: bool) -> list[MicroBatch]:
    """All micro-batches of the step, two sequences of 32 tokens each."""
    batches = dense_micro_batches(windows(2 * MICRO_BATCHES, seq_length=32, seed=11), 2)
    if not uneven:
        return batches
    position = torch.arange(32)
    return [
        replace(batch, loss_mask=(position >= 32 - count).float().expand(2, -1).contiguous())
        for batch, count in zip(batches, COUNTED, strict=True)
    ]


def run(layout: str, device: Device, out: Path) -> dict:
    del out
    cfg = config(layout)
    result: dict = {}
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    for uneven in (False, True):
        trainer = build_trainer(cfg, device, total_steps=10)
        set_expert_bias(trainer.module)
        trainer.model_config.mtp_loss_scaling_factor = 0.3
        trainer.model_config.moe_router_bias_update_rate = 1e-3
        trainer.model.zero_grad_buffer()
        trainer.module.train()
        mine = micro_batches(uneven=uneven)[dp_rank::dp_size]
        outputs = forward_backward(trainer.model, mine, LmObjective())
        logs, num_tokens = reduce_logs(outputs, device.torch_device)
        result["parameters"] = sum(parameter.numel() for parameter in trainer.module.parameters())
        bias = [shard for shard in shards(trainer.module) if shard[0].endswith("expert_bias")]
        result["uneven" if uneven else "full"] = {
            "loss": logs["loss"],
            "num_tokens": num_tokens,
            "bias": bias,
            "gradients": gradient_shards(trainer.model),
        }
    return result
