"""Shape of the model: what DeepSeek-V3's config.json says, in our words (DeepSeek-V3 report section 4.2)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """Context extension of the rotary embedding (V3 report section 4.3). factor 1.0 equals plain RoPE."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A DeepSeek-V3-shaped decoder: MLA attention, dense first layers, DeepSeekMoE after them, MTP at the end.

    q_lora_rank None means one plain query projection. moe_* and num_experts describe layers from num_dense_layers on.
    """

    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_dense_layers: int
    ffn_hidden_size: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    num_experts: int
    num_experts_per_token: int
    num_shared_experts: int
    moe_ffn_hidden_size: int
    num_expert_groups: int
    num_groups_per_token: int
    router_score: Literal["sigmoid", "softmax"]
    router_bias: bool
    norm_topk_prob: bool
    routed_scaling_factor: float
    mtp_depth: int
    rope_base: float
    yarn: YarnConfig | None
    max_position_embeddings: int
    rms_norm_eps: float
    init_std: float
    sequence_loss_coef: float

    @property
    def qk_head_dim(self) -> int:
        """Query/key width of one head: the part without and the part with rotary position."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        return self.num_layers - self.num_dense_layers
