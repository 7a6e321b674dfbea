"""Grouped-query attention over a cache of keys and values.

Legend: s new tokens per sequence, b sequences, g key-value heads of this rank, m query heads of each of them, d head
width, h hidden, c capacity.
"""

import torch
from megatron.core.transformer.attention import SelfAttention

from r1train.model.decode_attention import attend, rotate_
from r1train.model.decode_slots import Slots
from r1train.model.token_cache import TokenCache


def grouped_attention(
    attention: SelfAttention, inputs: torch.Tensor, *, cache: TokenCache, layer: int, slots: Slots
) -> torch.Tensor:
    """inputs [s, b, h] -> attention output [s, b, h]; writes these tokens' keys and values into the cache."""
    # Unsplit, heads lie as [query heads, key, value] of each group: one rotation and one write for all of them. The
    # split does no more where no norm follows it and every rank has key-value heads of its own (config/check_dense.py).
    assert attention.q_layernorm is None and attention.k_layernorm is None
    assert attention.config.num_query_groups >= attention.world_size
    heads, _ = attention.get_query_key_value_tensors(inputs, split_qkv=False)
    tokens, sequences, groups, width = *heads.shape[:3], attention.hidden_size_per_attention_head
    rotate_(heads.view(tokens * sequences, groups, -1, width)[:, :, :-1], slots)
    heads = heads.view(tokens, sequences, groups, -1, width)  # [s, b, g, m + 2, d]
    cache.write(layer, slots, heads[..., -2:, :].transpose(0, 1))
    entries = cache.entries[layer].unflatten(-1, (groups, 2, width))  # [b, c, g, 2, d]
    output, _ = attention.linear_proj(attend(heads[..., :-2, :], entries, slots))
    return output
