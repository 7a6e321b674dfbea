"""Parameters of the parts of a DeepSeek-shaped model (DeepSeek-V3 report section 2)."""

from r1train.config.schema_model import ModelConfig


def attention(model: ModelConfig) -> int:
    """MLA with the norms of its latents (V3 equations 1-11); without a q rank, one plain query projection."""
    hidden, heads, rank = model.hidden_size, model.num_attention_heads, model.kv_lora_rank
    query = hidden * heads * model.qk_head_dim
    if model.q_lora_rank is not None:
        query = hidden * model.q_lora_rank + model.q_lora_rank + model.q_lora_rank * heads * model.qk_head_dim
    key_value = hidden * (rank + model.qk_rope_head_dim) + rank
    key_value += rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    return query + key_value + heads * model.v_head_dim * hidden


def dense_layer(model: ModelConfig) -> int:
    """Attention, two norms, gated feed-forward."""
    return attention(model) + 2 * model.hidden_size + 3 * model.hidden_size * model.ffn_hidden_size


def expert(model: ModelConfig) -> int:
    """One gated expert; a shared expert has the same width."""
    return 3 * model.hidden_size * model.moe_ffn_hidden_size


def moe_layer(model: ModelConfig, num_experts: int) -> int:
    """Attention, two norms, router with its bias, shared experts and num_experts routed ones (all, or the active)."""
    experts = (num_experts + model.num_shared_experts) * expert(model)
    router = model.num_experts * (model.hidden_size + model.router_bias)
    return attention(model) + 2 * model.hidden_size + router + experts


def mtp_block(model: ModelConfig, num_experts: int) -> int:
    """One MTP block: a MoE layer, the projection of two hidden states to one, three norms (V3 section 2.2)."""
    return moe_layer(model, num_experts) + 2 * model.hidden_size**2 + 3 * model.hidden_size


def token_merging(model: ModelConfig) -> int:
    """Scores and gate of the merged layers (model/token_merging.py)."""
    return 0 if model.token_merging is None else 2 * model.hidden_size
