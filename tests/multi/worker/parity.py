"""Loss, gradient norm, every gradient, the updated expert biases and the experts' load of one step.

Cases: full windows; windows with uneven loss masks; packed rows of isolated samples.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state
from shards import all_shards, gradient_shards
from tiny import Config, config, set_expert_bias, windows

from r1train.data.batch import pack
from r1train.data.chat import Sample
from r1train.dist.init import Device
from r1train.train.balance import step_balance
from r1train.train.batches import dense_micro_batches, packed_micro_batches
from r1train.train.forward import LmObjective, MicroBatch, forward_backward
from r1train.train.setup import build_trainer
from r1train.train.step import reduce_logs

LAYOUTS = (
    "single",
    "recompute",
    "dp2",
    "ep2",
    "pp2",
    "tp2",
    "vpp2",
    "pp2_ep2",
    "tp2_ep2",
    "tp2_pp2",
    "ep4",
    "pp4",
    "vpp2_overlap",
)
CASES = ("full", "uneven", "packed")
MICRO_BATCHES = 4
COUNTED = (32, 5, 21, 11)  # tokens that count in each sequence of micro-batch i: uneven between data-parallel ranks
PACKED = ((20, 13, 31), (64,), (9, 40), (3, 5, 7, 11))  # lengths of the samples in each packed row of 64 tokens


def micro_batches(case: str) -> list[MicroBatch]:
    """All micro-batches of the step: two sequences of 32 tokens each, or one packed row of 64."""
    if case == "packed":
        return packed_rows()
    batches = dense_micro_batches(windows(2 * MICRO_BATCHES, seq_length=32, seed=11), 2)
    if case == "full":
        return batches
    position = torch.arange(32)
    return [
        replace(batch, loss_mask=(position >= 32 - count).float().expand(2, -1).contiguous())
        for batch, count in zip(batches, COUNTED, strict=True)
    ]


def packed_rows() -> list[MicroBatch]:
    """Rows whose samples count from their third token on."""
    rows = []
    for index, lengths in enumerate(PACKED):
        tokens = windows(len(lengths), seq_length=64, seed=index).numpy()
        samples = [
            Sample(id="", tokens=tokens[row, :length], trained=(np.arange(length) >= 2).astype(np.float32), extras={})
            for row, length in enumerate(lengths)
        ]
        rows.append(pack(samples, seq_length=64, pad_id=0))
    return packed_micro_batches(rows, seq_length=64, pad_id=0)


def run(layout: str, device: Device, out: Path) -> dict:
    del out
    return measure(config(layout), device, CASES)


def measure(cfg: Config, device: Device, cases: tuple[str, ...]) -> dict:
    """One step of every case, and this rank's number of parameters."""
    result: dict = {}
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    for case in cases:
        trainer = build_trainer(cfg, device, total_steps=10)
        for module in trainer.modules:
            set_expert_bias(module)
        trainer.model_config.mtp_loss_scaling_factor = 0.3
        trainer.model_config.moe_router_bias_update_rate = 1e-3
        for chunk in trainer.chunks:
            chunk.zero_grad_buffer()
            chunk.train()
        mine = [batch.to(device.torch_device) for batch in micro_batches(case)[dp_rank::dp_size]]
        outputs = forward_backward(trainer.chunks, mine, LmObjective())
        logs, num_tokens = reduce_logs(outputs, device.torch_device)
        result["parameters"] = sum(p.numel() for module in trainer.modules for p in module.parameters())
        bias = [shard for shard in all_shards(trainer.modules) if shard[0].endswith("expert_bias")]
        trainer.optimizer.prepare_grads()
        balance = step_balance(trainer.modules, micro_batches=len(mine))
        result[case] = {
            "loss": logs["loss"],
            "mtp_loss": logs["mtp_loss"],
            "sequence_loss": balance.gauges()["balance/sequence_loss"],
            "num_tokens": num_tokens,
            "bias": bias,
            "load": balance.load,
            "gradient_norm": float(trainer.optimizer.get_grad_norm()),
            "gradients": gradient_shards(trainer.chunks),
        }
    return result
