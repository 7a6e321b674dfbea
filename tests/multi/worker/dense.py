"""A dense model with a tied head: loss and gradients of one step, weights after it, generation and its logprobs."""

from pathlib import Path

from engine import PARAMS, forward_logprobs, gathered
from megatron.core import parallel_state
from parity import micro_batches
from shapes import dense_config
from shards import gradient_shards, shards
from tiny import Tokens, prompts

from r1train.dist.init import Device
from r1train.rollout.native import NativeEngine
from r1train.train.forward import LmObjective, forward_backward
from r1train.train.setup import build_trainer
from r1train.train.step import reduce_logs, train_step

LAYOUTS = ("single", "dp2", "pp2", "tp2")


def run(layout: str, device: Device, out: Path) -> dict:
    del out
    cfg = dense_config(layout)
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = micro_batches("uneven")[dp_rank::dp_size]
    trainer = build_trainer(cfg, device, total_steps=10)
    result: dict = {"parameters": sum(parameter.numel() for parameter in trainer.module.parameters())}
    engine = NativeEngine(trainer.module, Tokens(), batch_size=32)
    result["generated"] = gathered(engine.generate(prompts()[dp_rank::dp_size], PARAMS, policy_version=1))
    result["forward"] = forward_logprobs(trainer.module, result["generated"])
    stepped = train_step(trainer, mine, LmObjective())
    result |= {"grad_norm": stepped.grad_norm, "after_step": shards(trainer.module)}
    trainer = build_trainer(cfg, device, total_steps=10)
    trainer.model.zero_grad_buffer()
    trainer.model.train()
    outputs = forward_backward(trainer.chunks, mine, LmObjective())
    result["loss"] = reduce_logs(outputs, device.torch_device)[0]["loss"]
    result["gradients"] = gradient_shards(trainer.chunks)
    return result
