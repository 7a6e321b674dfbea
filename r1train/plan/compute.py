"""FLOPs of training on one token."""

from r1train.config.schema_model import AnyModelConfig, ModelConfig
from r1train.plan import shape_deepseek
from r1train.plan.shape import count_parameters

TRAINING_PASSES = 3  # forward once, backward twice


def flops_per_token(model: AnyModelConfig, *, seq_length: int, mtp: bool, causal: bool = True) -> float:
    """Training FLOPs per token: 6 per active parameter (embedding lookup left out) plus the attention scores.

    mtp: count the MTP blocks, each with its own pass through the output head. causal halves the attention part.
    """
    counts = count_parameters(model)
    per_seen = 2 * model.num_attention_heads * (model.qk_head_dim + model.v_head_dim)
    scores = per_seen * _tokens_seen(None, seq_length, causal=causal)
    windows = model.attention_windows if isinstance(model, ModelConfig) else None
    in_layers = [_tokens_seen(window, seq_length, causal=causal) for window in windows or [None] * model.num_layers]
    flops = 2 * counts.active_without_embedding + per_seen * sum(in_layers)
    if isinstance(model, ModelConfig):
        flops -= _merged_away(model, scores)
    if mtp:
        flops += 2 * (counts.mtp_active + model.mtp_depth * counts.embedding) + model.mtp_depth * scores
    return TRAINING_PASSES * flops


def _merged_away(model: ModelConfig, scores: float) -> float:
    """Forward FLOPs per token that token merging spares: its layers run once per window, over as many states."""
    merging = model.token_merging
    if merging is None:
        return 0.0
    dense, moe = shape_deepseek.dense_layer(model), shape_deepseek.moe_layer(model, model.num_experts_per_token)
    weights = [dense if layer <= model.num_dense_layers else moe for layer in merging.layers]
    return 2 * sum(weights) * (1 - 1 / merging.window) + len(weights) * scores * (1 - 1 / merging.window**2)


def _tokens_seen(window: int | None, seq_length: int, *, causal: bool) -> float:
    """Of a sequence, by its mean token: half of it, or a window that begins to be full after its own length."""
    width = seq_length if window is None else min(window, seq_length)
    return width * (1 - width / (2 * seq_length)) if causal else width
