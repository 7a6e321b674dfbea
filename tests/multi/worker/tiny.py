"""The small model, layouts, batches and prompts that the multi-process tests and the model's unit tests share."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from r1train.config.schema_model import ModelConfig, YarnConfig
from r1train.config.schema_parallel import ClusterConfig, ParallelConfig
from r1train.config.schema_train import LrConfig, OptimConfig, Piecewise
from r1train.data.prompts import Prompt

MODEL = ModelConfig(
    name="test",
    vocab_size=64,
    hidden_size=64,
    num_layers=3,
    num_dense_layers=1,
    ffn_hidden_size=96,
    num_attention_heads=4,
    q_lora_rank=32,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    num_experts=8,
    num_experts_per_token=2,
    num_shared_experts=1,
    moe_ffn_hidden_size=24,
    num_expert_groups=2,
    num_groups_per_token=1,
    router_score="sigmoid",
    router_bias=True,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    mtp_depth=1,
    rope_base=10000.0,
    yarn=None,
    max_position_embeddings=256,
    rms_norm_eps=1e-6,
    init_std=0.1,
    sequence_loss_coef=1e-2,
)
YARN_MODEL = replace(MODEL, yarn=YarnConfig(factor=4.0, original_max_positions=64))
STAGES = "Ett|tmL"
LAYOUTS = {
    "single": ParallelConfig(world_size=1),
    "recompute": ParallelConfig(
        world_size=1, recompute_modules=("core_attn", "mla_up_proj", "mlp", "moe", "shared_experts")
    ),
    "dp2": ParallelConfig(world_size=2),
    "dp2_overlap": ParallelConfig(world_size=2, overlap_grad_reduce=True, overlap_param_gather=True),
    "ep2": ParallelConfig(world_size=2, ep=2),
    "pp2": ParallelConfig(world_size=2, pp=2, pp_layout=STAGES),
    "tp2": ParallelConfig(world_size=2, tp=2),
    "vpp2": ParallelConfig(world_size=2, pp=2, pp_layout="Et|t|t|mL"),
    "pp2_ep2": ParallelConfig(world_size=4, pp=2, ep=2, pp_layout=STAGES),
    "tp2_ep2": ParallelConfig(world_size=4, tp=2, ep=2),
    "tp2_pp2": ParallelConfig(world_size=4, tp=2, pp=2, pp_layout=STAGES),
    "ep4": ParallelConfig(world_size=4, ep=4),
    # Uneven, with MTP on a stage of its own before the last: it needs a copy of the embedding, not of the head.
    "pp4": ParallelConfig(world_size=4, pp=4, pp_layout="Et|tt|m|L"),
    "vpp2_overlap": ParallelConfig(
        world_size=4, pp=2, pp_layout="Et|t|t|mL", overlap_grad_reduce=True, overlap_param_gather=True
    ),
}
# Which layout's third checkpoint a layout loads, in the order in which the layouts run.
SOURCES = {
    "pp2_ep2": None,
    "vpp2_overlap": "pp2_ep2",
    "ep4": "pp2_ep2",
    "single": "pp2_ep2",
    "pp2": "single",
    "ep2": "pp2",
    "vpp2": "ep2",
    "tp2": "pp2_ep2",
}
CHECKPOINT_STEP = "step_00000003"
OPTIM = OptimConfig(name="adamw", beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip_grad=1.0, precision="fp32")
LR = LrConfig(
    name="test",
    learning_rate=Piecewise(start=1e-3, unit="steps"),
    mtp_weight=Piecewise(start=0.3, unit="steps"),
    bias_rate=Piecewise(start=1e-3, unit="steps"),
)


@dataclass(frozen=True)
class Stage:
    keep_checkpoints: int = 2


@dataclass(frozen=True)
class Config:
    """The parts of a RunConfig that models and trainers read."""

    parallel: ParallelConfig
    cluster: ClusterConfig
    run_dir: Path = Path("unused")
    model: ModelConfig = MODEL
    seed: int = 7
    optim: OptimConfig = OPTIM
    lr: LrConfig = LR
    stage: Stage = Stage()


def config(layout: str, **changes: object) -> Config:
    parallel = LAYOUTS[layout]
    cluster = ClusterConfig(
        name="test", device="cpu", nodes=1, processes_per_node=parallel.world_size, threads_per_process=1
    )
    return Config(parallel, cluster, **changes)


def windows(count: int, *, seq_length: int, seed: int) -> torch.Tensor:
    """Random token windows [count, seq_length + 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, MODEL.vocab_size, (count, seq_length + 1), generator=generator)


class Tokens:
    """What the engine needs of a tokenizer; text is the ids in words."""

    bos_id, eos_id, pad_id = 0, 1, 2

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def prompts() -> list[Prompt]:
    """Five prompts of 3 to 11 tokens."""
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, MODEL.vocab_size, (length,), generator=generator).tolist() for length in (3, 11, 7, 4, 9)]
    return [Prompt(f"p{index}", "t", "?", "!", {}, (0, *one)) for index, one in enumerate(ids)]


def set_expert_bias(module: torch.nn.Module) -> None:
    """Biases of every router that change which experts are chosen: 0.1 times a sawtooth over the experts."""
    for name, buffer in module.named_buffers():
        if name.endswith("expert_bias"):
            buffer.copy_(0.1 * (torch.arange(buffer.numel()) % 3 - 1).float())
