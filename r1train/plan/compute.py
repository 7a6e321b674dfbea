"""FLOPs of training on one token."""

from r1train.config.schema_model import AnyModelConfig
from r1train.plan.shape import count_parameters

TRAINING_PASSES = 3  # forward once, backward twice


def flops_per_token(model: AnyModelConfig, *, seq_length: int, mtp: bool, causal: bool = True) -> float:
    """Training FLOPs per token: 6 per active parameter (embedding lookup left out) plus the attention scores.

    mtp: count the MTP blocks, each with its own pass through the output head. causal halves the attention part.
    """
    counts = count_parameters(model)
    head_dims = model.qk_head_dim + model.v_head_dim
    scores = 2 * model.num_attention_heads * head_dims * seq_length * (0.5 if causal else 1.0)
    flops = 2 * counts.active_without_embedding + model.num_layers * scores
    if mtp:
        flops += 2 * (counts.mtp_active + model.mtp_depth * counts.embedding) + model.mtp_depth * scores
    return TRAINING_PASSES * flops
