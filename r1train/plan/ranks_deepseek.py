"""Parameters that one rank holds of a pipeline stage of a DeepSeek-shaped model."""

from r1train.config.schema import RunConfig
from r1train.config.schema_model import ModelConfig
from r1train.plan.shape_deepseek import expert, token_merging


def _moe_blocks(model: ModelConfig, letters: str, first_layer: int) -> int:
    """MoE layers of a stage, MTP blocks included."""
    last_layer = first_layer + letters.count("t")
    return max(0, last_layer - max(first_layer, model.num_dense_layers)) + letters.count("m")


def routed(model: ModelConfig, cfg: RunConfig, letters: str, first_layer: int) -> int:
    """Routed experts of one pipeline stage on one expert-parallel rank."""
    parallel = cfg.parallel
    local_experts = model.num_experts // parallel.ep
    return _moe_blocks(model, letters, first_layer) * local_experts * expert(model) // parallel.etp


def unrouted(model: ModelConfig, cfg: RunConfig, letters: str, first_layer: int) -> int:
    """All but routed experts. An MTP stage without the embedding gets a copy of it (megatron-core GPTModel)."""
    tp = cfg.parallel.tp
    hidden, table = model.hidden_size, model.vocab_size * model.hidden_size // cfg.parallel.tp
    moe_blocks = _moe_blocks(model, letters, first_layer)
    layers = letters.count("t") + letters.count("m")
    dense_layers = layers - moe_blocks
    count = layers * (_attention(model, cfg) + 2 * hidden)
    count += dense_layers * 3 * hidden * model.ffn_hidden_size // tp
    count += moe_blocks * (model.num_experts * hidden + model.num_shared_experts * expert(model) // tp)
    count += letters.count("m") * (2 * hidden * hidden // tp + 3 * hidden)
    count += token_merging(model)  # which has one pipeline stage only
    count += table * (("E" in letters or "m" in letters) + ("L" in letters))
    return count + hidden * _has_final_norm(model, letters, first_layer)


def _has_final_norm(model: ModelConfig, letters: str, first_layer: int) -> bool:
    """With MTP the final norm follows the last decoder layer, without it stands next to the loss."""
    if model.mtp_depth == 0:
        return "L" in letters
    return "t" in letters and first_layer + letters.count("t") == model.num_layers


def _attention(model: ModelConfig, cfg: RunConfig) -> int:
    """MLA of one layer on one tensor-parallel rank.

    Transformer Engine keeps the down projections whole on every rank; our local modules cut them like the others.
    """
    tp = cfg.parallel.tp
    down_tp = 1 if cfg.cluster.device == "cuda" else tp
    hidden, heads, rank = model.hidden_size, model.num_attention_heads, model.kv_lora_rank
    query = hidden * heads * model.qk_head_dim // tp
    if model.q_lora_rank is not None:
        query = hidden * model.q_lora_rank // down_tp + model.q_lora_rank
        query += model.q_lora_rank * heads * model.qk_head_dim // tp
    key_value = hidden * (rank + model.qk_rope_head_dim) // down_tp + rank
    key_value += rank * heads * (model.qk_nope_head_dim + model.v_head_dim) // tp
    return query + key_value + heads * model.v_head_dim * hidden // tp
