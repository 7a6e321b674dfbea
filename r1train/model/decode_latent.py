"""Absorbed MLA over a cache of latents.

W_UK is folded into the query and W_UV into the output (DeepSeek-V2 report section 2.1.2), so attention reads latents.
Legend: s new tokens per sequence, b sequences, n heads, c kv_lora_rank, r rope width, d nope width, e value width,
t cache slots, h hidden.
"""

import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch.nn.functional import rms_norm

from r1train.model.decode_slots import Slots
from r1train.model.norm import RMSNorm
from r1train.model.token_cache import TokenCache


def _rotate(x: torch.Tensor, angles: torch.Tensor, mscale: float) -> torch.Tensor:
    """x [s, b, n, r] rotated by angles [s, b, 1, r]: the same rotation as the training forward."""
    return _apply_rotary_pos_emb_bshd(x, angles, mla_rotary_interleaved=True, mscale=mscale)


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
    # One rotation for the heads' queries and the key they share.
    rotated = _rotate(torch.cat([q_rope, rope_key[:, :, None]], dim=2), slots.angles, slots.mscale)
    q_rope, rope_key = rotated[:, :, :-1], rotated[:, :, -1]
    entry = torch.cat([_normed_latent(attention, latent), rope_key], dim=-1)
    cache.write(layer, slots.positions, entry.transpose(0, 1))

    up = attention.linear_kv_up_proj.weight.unflatten(0, (-1, config.qk_head_dim + config.v_head_dim))  # [n, d + e, c]
    w_uk, w_uv = up.split([config.qk_head_dim, config.v_head_dim], dim=1)
    q_absorbed = torch.cat([torch.einsum("sbnd,ndc->sbnc", q_nope, w_uk), q_rope], dim=-1)

    entries = cache.entries[layer][:, : slots.hidden.shape[-1]]  # [b, t, c + r]
    scores = torch.einsum("sbnw,btw->bnst", q_absorbed, entries).float().mul_(attention.softmax_scale)
    weights = scores.masked_fill_(slots.hidden, float("-inf")).softmax(dim=-1).to(entries.dtype)
    mixed = torch.einsum("bnst,btc->sbnc", weights, entries[..., : config.kv_lora_rank])
    output, _ = attention.linear_proj(torch.einsum("sbnc,nec->sbne", mixed, w_uv).flatten(2))
    return output
