"""Forward through the training modules over a cache of earlier tokens: one path for prefill and for decoding.

Legend: s new tokens per sequence, b sequences, h hidden.
"""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_layer import TransformerLayer

from r1train.model.attention import window_of
from r1train.model.decode_experts import FeedForward, dispatched
from r1train.model.decode_grouped import grouped_attention
from r1train.model.decode_latent import absorbed_attention
from r1train.model.decode_slots import Slots
from r1train.model.gpt import R1Model
from r1train.model.token_cache import TokenCache


def empty_cache(
    model: R1Model, *, sequences: int, capacity: int, device: torch.device, routes: bool = False
) -> TokenCache:
    """Room for `capacity` tokens of each sequence in this pipeline stage's layers; routes: for their experts, too.

    Tensor-parallel ranks hold latents whole, and of keys and values those of their own heads.
    """
    config = model.config
    if config.multi_latent_attention:
        width = config.kv_lora_rank + config.qk_pos_emb_head_dim
    else:
        tp_size = parallel_state.get_tensor_model_parallel_world_size()
        width = 2 * (config.num_query_groups // tp_size) * config.kv_channels
    shape = (len(model.decoder.layers), sequences, capacity, width)
    cache = TokenCache.empty(shape, dtype=config.params_dtype, device=device)
    if not routes:
        return cache
    expert_layers = sum(isinstance(block.mlp, MoELayer) for block in model.decoder.layers)
    places = (sequences, capacity, expert_layers, config.moe_router_topk)
    dtype = torch.uint8 if config.num_moe_experts <= 256 else torch.int16
    return TokenCache(cache.entries, cache.lengths, torch.zeros(places, dtype=dtype, device=device))


def rotation_table(model: R1Model, capacity: int) -> torch.Tensor:
    """cos and sin of every position, [capacity, 2, rope width] in the model's dtype; the first half of sin negated.

    Times a factor where YaRN asks for one; rounded as megatron-core's plain rotation does.
    """
    mscale = 1.0
    if model.config.multi_latent_attention:
        angles, mscale = model.decoder.layers[0].self_attention.rotary_pos_emb(capacity)
    else:
        angles = model.rotary_pos_emb(capacity)
    table = torch.stack([angles[:, 0, 0].cos(), angles[:, 0, 0].sin()], dim=1).mul_(mscale)
    table[:, 1, : table.shape[-1] // 2].neg_()
    return table.to(model.config.params_dtype)


def _layer_forward(
    block: TransformerLayer, hidden: torch.Tensor, feed_forward: FeedForward, **attention_arguments
) -> torch.Tensor:
    """One decoder layer with residuals, without dropout or biases after a projection: no shape of ours has them."""
    attend = absorbed_attention if block.config.multi_latent_attention else grouped_attention
    hidden = hidden + attend(block.self_attention, block.input_layernorm(hidden), **attention_arguments)
    return hidden + feed_forward(block.mlp, block.pre_mlp_layernorm(hidden))


def stage_forward(
    model: R1Model,
    inputs: torch.Tensor,
    *,
    cache: TokenCache,
    slots: Slots,
    feed_forward: FeedForward = dispatched,
) -> torch.Tensor:
    """This pipeline stage's part. inputs: token ids [b, s] on the first stage, hidden [s, b, h] later.

    Returns hidden [s, b, h]; on the last stage after the final norm. slots: those that these tokens take and see. A
    cache with routes gets the experts chosen here (inside `recording`, model/replay.py). feed_forward: how experts are
    computed (model/decode_experts.py).
    """
    hidden = model.embedding(input_ids=inputs, position_ids=slots.positions) if model.pre_process else inputs
    expert_layer = 0
    for index, block in enumerate(model.decoder.layers):
        seen = slots.within(window_of(block.self_attention.core_attention))
        hidden = _layer_forward(block, hidden, feed_forward, cache=cache, layer=index, slots=seen)
        if cache.routes is not None and isinstance(block.mlp, MoELayer):
            cache.write_routes(expert_layer, slots, block.mlp.router.tape.recorded)
            expert_layer += 1
    return model.decoder.final_layernorm(hidden) if model.post_process else hidden


def next_token_logits(model: R1Model, hidden: torch.Tensor) -> torch.Tensor:
    """Last stage: hidden [b, h] of one position per sequence -> logits [b, vocabulary], float32."""
    logits, _ = model.head()(hidden[None])
    return gather_from_tensor_model_parallel_region(logits)[0].float()
