"""Bytes of weights, gradients and optimizer state per rank, and of a cached token.

Activations, buffers and padding are not part of it yet.
"""

from dataclasses import dataclass

from r1train.config.schema import RunConfig
from r1train.config.schema_model import AnyModelConfig, ModelConfig
from r1train.plan.ranks import RankParameters

GRADIENT_BYTES = 4
DTYPE_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class RankBytes:
    """Bytes on one rank; optimizer: fp32 master weights (none in fp32 runs) and both moments of AdamW."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def rank_bytes(cfg: RunConfig, params: RankParameters) -> RankBytes:
    """Bytes of one rank. Gradients are accumulated in fp32.

    FP8 recipes keep bf16 weights. The distributed optimizer (ZeRO-1) spreads its state over dp x cp ranks for dense
    parameters and over edp ranks for routed experts; a share is rounded up to whole parameters.
    """
    parallel, optim = cfg.parallel, cfg.optim
    is_fp32 = optim.precision == "fp32"
    per_parameter = 2 * DTYPE_BYTES["fp32" if is_fp32 else optim.moments_dtype] + (0 if is_fp32 else 4)
    owned = -(-params.dense // (parallel.dp * parallel.cp)) + -(-params.expert // parallel.edp)
    return RankBytes(
        weights=params.total * (4 if is_fp32 else 2),
        gradients=params.total * GRADIENT_BYTES,
        optimizer=owned * per_parameter,
    )


def cache_bytes_per_token(model: AnyModelConfig, dtype: str) -> int:
    """What generation keeps of one token in all layers; dtype: fp32 or bf16.

    MLA: one latent and one RoPE key, shared by all heads (V2 report section 2.1). GQA: a key and a value per head.
    """
    if isinstance(model, ModelConfig):
        width = model.kv_lora_rank + model.qk_rope_head_dim
    else:
        width = 2 * model.num_key_value_heads * model.head_dim
    return model.num_layers * width * DTYPE_BYTES[dtype]
