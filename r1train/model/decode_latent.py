"""Absorbed MLA over a cache of latents.

W_UK is folded into the query and W_UV into the output (DeepSeek-V2 report section 2.1.2), so attention reads latents.
Legend: s new tokens per sequence, b sequences, n heads, c kv_lora_rank, r rope width, d nope width, e value width,
t cache slots, h hidden.
"""

import torch
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch.nn.functional import rms_norm

from r1train.model.decode_attention import rotate_, weights_of
from r1train.model.decode_slots import Slots
from r1train.model.norm import RMSNorm
from r1train.model.token_cache import TokenCache


def _rotate(query: torch.Tensor, key: torch.Tensor, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
    """The heads' queries [s, b, n, r] and the key they share [s, b, r], rotated together, as in the training forward.

    Pairs of neighbours are rotated, and stand in two halves afterwards.
    """
    parts = (query, key[:, :, None])
    pairs = torch.cat([x.flatten(0, 1).unflatten(-1, (-1, 2)).transpose(-1, -2) for x in parts], dim=1)
    rotated = rotate_(pairs.flatten(2)[:, None], slots).view(*query.shape[:2], -1, query.shape[-1])
    return rotated[:, :, :-1], rotated[:, :, -1]


def _normed_latent(attention: MLASelfAttention, latent: torch.Tensor) -> torch.Tensor:
    """The norm between down- and up-projection: a module in the local spec, fused into the up-projection in TE's."""
    if isinstance(attention.kv_layernorm, RMSNorm):
        return attention.kv_layernorm(latent)
    weight = attention.linear_kv_up_proj.layer_norm_weight
    return rms_norm(latent, weight.shape, weight, attention.config.layernorm_epsilon)


def absorbed_attention(
    attention: MLASelfAttention, inputs: torch.Tensor, *, cache: TokenCache, layer: int, slots: Slots
) -> torch.Tensor:
    """inputs [s, b, h] -> attention output [s, b, h]; writes these tokens into the cache."""
    config = attention.config
    q_latent, kv = attention._qkv_down_projection(inputs)
    latent, rope_key = kv.split([config.kv_lora_rank, config.qk_pos_emb_head_dim], dim=-1)
    if config.q_lora_rank is None:
        query, _ = attention.linear_q_proj(q_latent)
    else:
        query, _ = attention.linear_q_up_proj(attention.q_layernorm(q_latent))
    query = query.unflatten(-1, (-1, attention.q_head_dim))
    q_nope, q_rope = query.split([config.qk_head_dim, config.qk_pos_emb_head_dim], dim=-1)
    q_rope, rope_key = _rotate(q_rope, rope_key, slots)
    entry = torch.cat([_normed_latent(attention, latent), rope_key], dim=-1)
    cache.write(layer, slots, entry.transpose(0, 1))

    up = attention.linear_kv_up_proj.weight.unflatten(0, (-1, config.qk_head_dim + config.v_head_dim))  # [n, d + e, c]
    w_uk, w_uv = up.split([config.qk_head_dim, config.v_head_dim], dim=1)
    q_absorbed = torch.cat([torch.einsum("sbnd,ndc->sbnc", q_nope, w_uk), q_rope], dim=-1)

    entries = cache.entries[layer][:, : slots.visible]  # [b, t, c + r]
    scores = torch.einsum("sbnw,btw->bnst", q_absorbed, entries)
    weights = weights_of(scores, slots.unseen(), attention.softmax_scale)
    mixed = torch.einsum("bnst,btc->sbnc", weights, entries[..., : config.kv_lora_rank])
    output, _ = attention.linear_proj(torch.einsum("sbnc,nec->sbne", mixed, w_uv).flatten(2))
    return output
