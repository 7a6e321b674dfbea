"""Grouped-query attention over a cache of keys and values.

Legend: s new tokens per sequence, b sequences, n query heads, g key-value heads, d head width, t cache slots, h hidden.
"""

import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from megatron.core.transformer.attention import SelfAttention

from r1train.model.decode_slots import Slots
from r1train.model.token_cache import TokenCache


def grouped_attention(
    attention: SelfAttention, inputs: torch.Tensor, *, cache: TokenCache, layer: int, slots: Slots
) -> torch.Tensor:
    """inputs [s, b, h] -> attention output [s, b, h]; writes these tokens' keys and values into the cache."""
    query, key, value = attention.get_query_key_value_tensors(inputs)  # [s, b, n, d], [s, b, g, d] twice
    query, key = (_apply_rotary_pos_emb_bshd(x, slots.angles, mscale=slots.mscale) for x in (query, key))
    cache.write(layer, slots.positions, torch.stack([key, value], dim=2).flatten(2).transpose(0, 1))

    groups, width = key.shape[2:]
    entries = cache.entries[layer][:, : slots.hidden.shape[-1]].unflatten(-1, (2, groups, width))
    keys, values = entries.unbind(dim=2)  # [b, t, g, d]
    scores = torch.einsum("sbgmd,btgd->bgmst", query.unflatten(2, (groups, -1)), keys).float().mul_(width**-0.5)
    weights = scores.masked_fill_(slots.hidden[:, None], float("-inf")).softmax(dim=-1).to(values.dtype)
    output, _ = attention.linear_proj(torch.einsum("bgmst,btgd->sbgmd", weights, values).flatten(2))
    return output
