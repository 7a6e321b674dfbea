"""Shape of the model: what its config.json says, in our words. Two architectures, told apart by `architecture`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

FP8_BLOCK = 128  # rows and columns of DeepSeek's FP8 blocks (V3 report section 3.3.2)


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
class TokenMergingConfig:
    """Layers first_layer to last_layer (from 1, both included) see one state per `window` tokens.

    An experiment that neither paper has; pre-training only. docs/token_merging.md.
    """

    first_layer: int
    last_layer: int
    window: int

    @property
    def layers(self) -> range:
        """Numbers of the layers, from 1."""
        return range(self.first_layer, self.last_layer + 1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A DeepSeek-shaped decoder: MLA attention, dense first layers, DeepSeekMoE after them, MTP at the end.

    DeepSeek-V3 report section 4.2; DeepSeek-V2-Lite and Moonlight are members too. q_lora_rank None means one plain
    query projection. moe_* and num_experts describe layers from num_dense_layers on.
    attention_windows: for every layer how many tokens, itself included, a token sees, null: all before it; null for
    the whole list: no layer has a window, as in DeepSeek's released models. MTP's layer sees all.
    token_merging: null, off.
    """

    architecture: Literal["deepseek"] = "deepseek"
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
    attention_windows: tuple[int | None, ...] | None = None
    token_merging: TokenMergingConfig | None = None

    @property
    def qk_head_dim(self) -> int:
        """Query/key width of one head: the part without and the part with rotary position."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        return self.num_layers - self.num_dense_layers

    @property
    def distinct_positions(self) -> int:
        """How many positions a sequence may have: with YaRN no more than factor x original_max_positions."""
        if self.yarn is None:
            return self.max_position_embeddings
        return min(self.max_position_embeddings, int(self.yarn.factor * self.yarn.original_max_positions))


@dataclass(frozen=True, kw_only=True)
class Llama3RopeConfig:
    """Context extension of Llama 3.1: frequencies below a band are divided by factor, above it they stay.

    The band lies between original_max_positions / low_freq_factor and / high_freq_factor positions per turn.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, kw_only=True)
class DenseModelConfig:
    """A Llama- or Qwen2-shaped decoder, the students of distillation (R1 report section 2.4): GQA and SwiGLU.

    qkv_bias: biases on query, key and value (Qwen2), nowhere else. tie_embeddings: the head is the embedding.
    """

    architecture: Literal["dense"] = "dense"
    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool
    tie_embeddings: bool
    rope_base: float
    rope_scaling: Llama3RopeConfig | None
    max_position_embeddings: int
    rms_norm_eps: float
    init_std: float

    @property
    def qk_head_dim(self) -> int:
        """Query/key width of one head, for code that asks every model."""
        return self.head_dim

    @property
    def v_head_dim(self) -> int:
        return self.head_dim

    @property
    def distinct_positions(self) -> int:
        """How many positions a sequence may have."""
        return self.max_position_embeddings

    @property
    def mtp_depth(self) -> int:
        """No multi-token prediction."""
        return 0


AnyModelConfig = Annotated[ModelConfig | DenseModelConfig, Field(discriminator="architecture")]
