"""Loss, gauges and gradients of one RL step, for every algorithm: the samples dealt to the data-parallel ranks.

A single process also packs them in another order into rows of another length, and one sample per row. Several also
start with six of them on the first data-parallel rank, and deal them out by tokens.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from megatron.core import parallel_state
from shards import gradient_shards
from tiny import MODEL, config, set_expert_bias

from r1train.config.schema_rl import CorrectionConfig, RlConfig
from r1train.dist.init import Device
from r1train.rl.batch import TrainSample, pack_samples, with_extra, with_routes
from r1train.rl.deal import deal
from r1train.rl.mismatch import logprob_gap
from r1train.rl.objective import GrpoObjective, LogprobObjective
from r1train.rl.routing import replay_gauge, route_shape, update_pass
from r1train.train.forward import forward_backward, forward_only
from r1train.train.setup import build_trainer
from r1train.train.step import reduce_logs

LAYOUTS = ("single", "dp2", "ep2", "pp2", "tp2", "pp2_ep2")
TEMPERATURE = 0.8
LENGTHS = (9, 30, 2, 17, 24, 5, 12)  # tokens of each response; the data-parallel ranks get 4 and 3 of them
BASE = RlConfig(
    name="grpo",
    policy_loss="clip",
    clip_low=0.05,
    clip_high=0.07,
    kl_coef=0.1,
    kl_estimator="k3",
    advantage_std="population",
    aggregation="seq-mean-token-mean",
)
TIS = CorrectionConfig(
    weight="sequence-tis",
    weight_high=1.01,
    sequence_mask="geometric",
    mask_low=0.995,
    mask_high=1.004,
    off_policy_delta=0.004,
)
ALGORITHMS = {
    "grpo": BASE,
    "dr_grpo": replace(BASE, aggregation="seq-mean-token-sum-norm"),
    "dapo": replace(BASE, aggregation="token-mean", kl_estimator="unbiased"),
    "gspo": replace(BASE, policy_loss="gspo", clip_low=0.002, clip_high=0.002, correction=TIS),
    "gspo_token": replace(BASE, policy_loss="gspo-token", clip_low=0.002, clip_high=0.002, kl_estimator="k2"),
    "cispo": replace(BASE, policy_loss="cispo", aggregation="token-mean", correction=TIS),
    "replay": replace(BASE, routing_replay="engine"),
}
# Rows of how many tokens, and whether the samples come in reverse.
PACKINGS = {"rows": (64, False), "long_rows": (128, True), "one_each": (36, True), "dealt": (64, False)}
DEALT = ("grpo", "gspo", "replay")


def routes(sample: int, tokens: int) -> np.ndarray:
    """Experts that no router would choose, of this pipeline stage's layers: [tokens, layers, 2]."""
    generator = np.random.default_rng(100 + sample)
    first = generator.integers(0, MODEL.num_experts, (tokens, 2))
    second = (first + generator.integers(1, MODEL.num_experts, (tokens, 2))) % MODEL.num_experts
    both = np.stack([first, second], axis=-1).astype(np.uint8)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    whole = parallel_state.get_pipeline_model_parallel_world_size() == 1
    return both if whole else both[:, stage : stage + 1]


def samples() -> list[TrainSample]:
    generator = np.random.default_rng(8)
    return [
        TrainSample(
            id=str(index),
            prompt=tuple(generator.integers(3, MODEL.vocab_size, 4).tolist()),
            response=generator.integers(3, MODEL.vocab_size, length),
            advantage=[1.2, -0.8, 0.5][index % 3],
            engine_logprobs=np.zeros(length, dtype=np.float32),
            routes=routes(index, 4 + length - 1),
        )
        for index, length in enumerate(LENGTHS)
    ]


def off_policy(batches: list, device: Device) -> list:
    """Old, engine and reference logprobs a little off the policy's, by amounts that belong to token and position."""
    moved = []
    for batch in batches:
        # Stages before the last know no logprobs, and nobody asks them.
        policy = batch.extras["policy"] if "policy" in batch.extras else torch.zeros_like(batch.loss_mask)
        wave = torch.sin(1.7 * batch.labels + 0.9 * batch.positions)
        extras = {"old_logprobs": policy + 0.1 * wave, "engine_logprobs": policy + 0.13 * wave}
        moved.append(replace(batch, extras={**batch.extras, **extras, "ref_logprobs": policy + 0.3 * wave}))
    return moved


def step(trainer, device: Device, rl: RlConfig, packing: str) -> dict:
    """One step's loss, gauges and gradient. gradient_shards spoils the weights, so every call has its own trainer."""
    seq_length, reverse = PACKINGS[packing]
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = samples()[:: -1 if reverse else 1][dp_rank::dp_size]
    if packing == "dealt":
        mine = deal(samples()[6 * dp_rank : 6 * dp_rank + 6] if dp_size > 1 else samples())
    packed = pack_samples(mine, seq_length=seq_length, pad_id=2, aggregation=rl.aggregation, max_response_tokens=32)
    for chunk in trainer.chunks:
        chunk.zero_grad_buffer()
        chunk.train()
    batches = packed.batches
    if rl.routing_replay != "none":
        batches = with_routes(batches, mine, shape=route_shape(trainer.module, rl))
    objective = LogprobObjective(TEMPERATURE, routing=update_pass(trainer.module, rl))
    batches = off_policy(with_extra(batches, "policy", forward_only(trainer.chunks, batches, objective)), device)
    routing = update_pass(trainer.module, rl)
    objective = GrpoObjective(rl, TEMPERATURE, num_tokens=packed.counts.tokens, routing=routing)
    logs, num_tokens = reduce_logs(forward_backward(trainer.chunks, batches, objective), device.torch_device)
    gauges = {**logs, **objective.ratio_quantiles(), **logprob_gap(batches)}
    if routing is not None:
        counts = routing.counts()
        gauges |= {**replay_gauge(counts, "update"), "pairs": counts.expected, "flipped": counts.flipped}
    lengths = {one.id: len(one.prompt) + len(one.response) for one in mine}
    gradients = gradient_shards(trainer.chunks)
    return {"num_tokens": num_tokens, "gauges": gauges, "gradients": gradients, "dp_rank": dp_rank, "lengths": lengths}


def run(layout: str, device: Device, out: Path) -> dict:
    del out
    # Without the router's sequence loss, which looks at whole rows and so depends on how samples are packed.
    cfg = config(layout, model=replace(MODEL, sequence_loss_coef=0.0))
    result: dict = {}
    for name, rl in ALGORITHMS.items():
        for packing in PACKINGS if layout == "single" else ("rows", "dealt"):
            if packing == "dealt" and name not in DEALT:
                continue
            trainer = build_trainer(cfg, device, total_steps=10)
            for module in trainer.modules:
                set_expert_bias(module)
            trainer.model_config.moe_router_bias_update_rate = 0.0
            result[name, packing] = step(trainer, device, rl, packing)
    return result
