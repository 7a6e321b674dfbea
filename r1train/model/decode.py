"""Forward through the training modules over a latent cache: absorbed MLA, one path for prefill and for decoding.

W_UK is folded into the query and W_UV into the output (DeepSeek-V2 report section 2.1.2), so attention reads latents.
Legend: s new tokens per sequence, b sequences, n heads, c kv_lora_rank, r rope width, d nope width, e value width,
t cache slots, h hidden.
"""

import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.nn.functional import rms_norm

from r1train.model.gpt import R1Model
from r1train.model.latent_cache import LatentCache
from r1train.model.norm import RMSNorm


def rotary_angles(attention: MLASelfAttention, capacity: int) -> tuple[torch.Tensor, float]:
    """Angles [capacity, r] of every position and the factor on cos and sin (1.0 for DeepSeek's YaRN settings)."""
    angles, mscale = attention.rotary_pos_emb(capacity)
    return angles[:, 0, 0], float(mscale)


def _rotate(x: torch.Tensor, angles: torch.Tensor, mscale: float) -> torch.Tensor:
    """x [s, b, n, r] rotated by angles [s, b, 1, r]: the same rotation as the training forward."""
    return _apply_rotary_pos_emb_bshd(x, angles, mla_rotary_interleaved=True, mscale=mscale)


def _normed_latent(attention: MLASelfAttention, latent: torch.Tensor) -> torch.Tensor:
    """The norm between down- and up-projection: a module in the local spec, fused into the up-projection in TE's."""
    if isinstance(attention.kv_layernorm, RMSNorm):
        return attention.kv_layernorm(latent)
    weight = attention.linear_kv_up_proj.layer_norm_weight
    return rms_norm(latent, weight.shape, weight, attention.config.layernorm_epsilon)


def _absorbed_attention(
    attention: MLASelfAttention,
    hidden: torch.Tensor,
    *,
    cache: LatentCache,
    layer: int,
    positions: torch.Tensor,
    rotary: tuple[torch.Tensor, float],
) -> torch.Tensor:
    """hidden [s, b, h] at positions [b, s] -> attention output [s, b, h]; writes these tokens into the cache."""
    config = attention.config
    angles = rotary[0][positions].transpose(0, 1)[:, :, None]  # [s, b, 1, r]
    q_latent, kv = attention._qkv_down_projection(hidden)
    latent, rope_key = kv.split([config.kv_lora_rank, config.qk_pos_emb_head_dim], dim=-1)
    rope_key = _rotate(rope_key[:, :, None], angles, rotary[1])[:, :, 0]
    cache.write(layer, positions, torch.cat([_normed_latent(attention, latent), rope_key], dim=-1).transpose(0, 1))

    if config.q_lora_rank is None:
        query, _ = attention.linear_q_proj(q_latent)
    else:
        query, _ = attention.linear_q_up_proj(attention.q_layernorm(q_latent))
    query = query.unflatten(-1, (-1, attention.q_head_dim))
    q_nope, q_rope = query.split([config.qk_head_dim, config.qk_pos_emb_head_dim], dim=-1)
    up = attention.linear_kv_up_proj.weight.unflatten(0, (-1, config.qk_head_dim + config.v_head_dim))  # [n, d + e, c]
    w_uk, w_uv = up.split([config.qk_head_dim, config.v_head_dim], dim=1)
    q_absorbed = torch.cat([torch.einsum("sbnd,ndc->sbnc", q_nope, w_uk), _rotate(q_rope, angles, rotary[1])], dim=-1)

    entries = cache.entries[layer]  # [b, t, c + r]
    visible = torch.arange(entries.shape[1], device=positions.device) <= positions[:, None, :, None]  # [b, 1, s, t]
    scores = torch.einsum("sbnw,btw->bnst", q_absorbed, entries).float() * attention.softmax_scale
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1).to(entries.dtype)
    mixed = torch.einsum("bnst,btc->sbnc", weights, entries[..., : config.kv_lora_rank])
    output, _ = attention.linear_proj(torch.einsum("sbnc,nec->sbne", mixed, w_uv).flatten(2))
    return output


def _layer_forward(block: TransformerLayer, hidden: torch.Tensor, **attention_arguments) -> torch.Tensor:
    """One decoder layer with residuals, without dropout or biases: this model family has neither."""
    normed = block.input_layernorm(hidden)
    hidden = hidden + _absorbed_attention(block.self_attention, normed, **attention_arguments)
    output, _ = block.mlp(block.pre_mlp_layernorm(hidden))
    return hidden + output


def stage_forward(
    model: R1Model,
    inputs: torch.Tensor,
    *,
    cache: LatentCache,
    positions: torch.Tensor,
    rotary: tuple[torch.Tensor, float],
) -> torch.Tensor:
    """This pipeline stage's part. inputs: token ids [b, s] on the first stage, hidden [s, b, h] later.

    Returns hidden [s, b, h]; on the last stage after the final norm. positions: int64 [b, s], slots these tokens take.
    """
    hidden = model.embedding(input_ids=inputs, position_ids=positions) if model.pre_process else inputs
    for index, block in enumerate(model.decoder.layers):
        hidden = _layer_forward(block, hidden, cache=cache, layer=index, positions=positions, rotary=rotary)
    return model.decoder.final_layernorm(hidden) if model.post_process else hidden


def next_token_logits(model: R1Model, hidden: torch.Tensor) -> torch.Tensor:
    """Last stage: hidden [b, h] of one position per sequence -> logits [b, vocabulary], float32."""
    logits, _ = model.output_layer(hidden[None])
    return logits[0].float()
