"""Parameters of the parts of a dense model: grouped-query attention (arXiv 2305.13245) and SwiGLU."""

from r1train.config.schema_model import DenseModelConfig


def attention(model: DenseModelConfig) -> int:
    """Query, key, value and output projections; biases on the first three where the shape has them (Qwen2)."""
    query = model.num_attention_heads * model.head_dim
    key_value = 2 * model.num_key_value_heads * model.head_dim
    return model.hidden_size * (2 * query + key_value) + model.qkv_bias * (query + key_value)


def layer(model: DenseModelConfig) -> int:
    """Attention, two norms, gated feed-forward."""
    return attention(model) + 2 * model.hidden_size + 3 * model.hidden_size * model.ffn_hidden_size
