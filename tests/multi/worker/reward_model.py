"""A step of a reward model in every layout: scores of all samples, loss, gradients of pairs dealt to the ranks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state
from shards import gradient_shards
from tiny import MODEL, config, set_expert_bias

from r1train.data.chat import Sample
from r1train.data.preferences import Example, pack_examples
from r1train.dist.init import Device
from r1train.model.value_head import value_head
from r1train.reward.preference import Packing, score_samples
from r1train.reward.reward_model import ScoreObjective
from r1train.train.batches import packed_micro_batches
from r1train.train.forward import forward_backward
from r1train.train.setup import build_trainer
from r1train.train.step import reduce_logs

LAYOUTS = ("single", "dp2", "ep2", "pp2", "tp2")
PAD = 2


class Tokenizer:
    pad_id = PAD


def examples() -> list[Example]:
    """Five pairs of responses of 3 to 14 tokens; the data-parallel ranks get three and two of them."""
    generator = np.random.default_rng(4)

    def sample(name: str, length: int) -> Sample:
        trained = np.array([0, 0, *[1] * length], dtype=np.float32)
        return Sample(name, generator.integers(3, MODEL.vocab_size, length + 2), trained)

    lengths = [(3, 9), (14, 5), (7, 7), (4, 12), (10, 6)]
    return [
        Example(str(n), tuple(sample(f"{n}/{i}", one) for i, one in enumerate(two))) for n, two in enumerate(lengths)
    ]


def run(layout: str, device: Device, out: Path) -> dict:
    del out
    # Without the router's sequence loss, which looks at whole rows and so depends on how samples are packed.
    cfg = config(layout, model=replace(MODEL, sequence_loss_coef=0.0))
    trainer = build_trainer(cfg, device, total_steps=10, scalar_head=True)
    for module in trainer.modules:
        set_expert_bias(module)
    trainer.model_config.moe_router_bias_update_rate = 0.0
    head = value_head(trainer.module)
    if head is not None:
        head.weight.data.copy_(torch.sin(torch.arange(MODEL.hidden_size))[None])
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = examples()[rank::size]
    packing = Packing(Tokenizer(), 32, device.torch_device)
    scores = score_samples(trainer.module, [sample for one in mine for sample in one.samples], packing)
    for chunk in trainer.chunks:
        chunk.zero_grad_buffer()
        chunk.train()
    rows = pack_examples(mine, seq_length=48, pad_id=PAD)
    batches = packed_micro_batches(rows, seq_length=48, pad_id=PAD)
    outputs = forward_backward(trainer.chunks, batches, ScoreObjective(head, "pairwise"))
    logs, pairs = reduce_logs(outputs, device.torch_device)
    by_id = {sample.id: score for sample, score in zip((s for one in mine for s in one.samples), scores, strict=True)}
    return {"scores": by_id, "logs": logs, "pairs": pairs, "gradients": gradient_shards(trainer.chunks)}
