"""Attention without Transformer Engine: the core for dense and packed batches, and MLA's right gradient under TP."""

import copy

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import (
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules
from torch.nn.functional import pad, scaled_dot_product_attention


class LatentAttention(MLASelfAttention):
    """megatron-core 0.19.2's MLA with two mends.

    Under tensor parallelism with local linear layers the down projection is cut over ranks, and megatron-core gathers
    its output with a function whose backward does not sum over ranks: the RoPE key, which all heads share, would learn
    from this rank's heads only. Cut along the sequence like the query latent, the key takes the path of Transformer
    Engine's uncut projection, whose backward sums.

    A query without low rank has no latent, so no norm; megatron-core would insist on one. Here the spec decides.
    """

    def _resolve_qk_norm_config(self, submodules: MLASelfAttentionSubmodules) -> dict[str, type]:
        return {
            "linear_q_proj": submodules.linear_q_proj,
            "linear_q_up_proj": submodules.linear_q_up_proj,
            "linear_kv_up_proj": submodules.linear_kv_up_proj,
            "q_layernorm": submodules.q_layernorm,
            "kv_layernorm": submodules.kv_layernorm,
        }

    def _qkv_down_projection(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q_latent, kv = super()._qkv_down_projection(hidden_states)
        if kv.shape[-1] != self.config.kv_lora_rank + self.config.qk_pos_emb_head_dim:
            kv = gather_from_tensor_model_parallel_region(kv)
            if self.config.sequence_parallel:  # off while tokens are generated (model/decode_parallel.py)
                kv = scatter_to_sequence_parallel_region(kv)
        return q_latent, kv


def windowed(core: type, window: int) -> type:
    """A core attention, ours or Transformer Engine's, in which a token sees `window` tokens, itself included."""

    class Windowed(core):
        def __init__(self, config: TransformerConfig, *args: object, **kwargs: object):
            # A copy: megatron-core has one window for all layers, and its layers share one config.
            config = copy.copy(config)
            config.window_size, config.window_attn_skip_freq = (window - 1, 0), None
            super().__init__(config, *args, **kwargs)

    Windowed.__name__ = f"{core.__name__}Window{window}"
    return Windowed


def window_of(core: MegatronModule) -> int | None:
    """How many tokens, itself included, a token sees in this core attention; None: all before it."""
    size = core.config.window_size
    return None if size is None else size[0] + 1


class CoreAttention(MegatronModule):
    """softmax(q k^T * softmax_scale) v, causal; key and value width may differ (MLA), n may be a multiple of g (GQA).

    softmax_scale None: 1 / sqrt(d). With a window (config.window_size) a token sees that many, itself included.
    Legend: s tokens, b sequences, n query heads and g key-value heads of this rank, d key width, e value width,
    T packed tokens.
    """

    def __init__(self, config: TransformerConfig, softmax_scale: float | None, **_unused: object):
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        packed_seq_params: PackedSeqParams | None = None,
        **_unused: object,
    ) -> torch.Tensor:
        """Dense: query [s, b, n, d], key [s, b, g, d], value [s, b, g, e] -> [s, b, n * e]. Packed: T for s, b."""
        del attention_mask  # always causal
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params.cu_seqlens_q)
        out = self._attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value)))
        return out.permute(2, 0, 1, 3).flatten(2)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # torch's fused kernel wants one width for key and value: pad the narrower value, cut the result.
        width = value.shape[-1]
        value = pad(value, (0, query.shape[-1] - width))
        grouped, window, length = query.shape[1] != key.shape[1], window_of(self), query.shape[2]
        seen = None
        if window is not None and window < length:
            seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
        out = scaled_dot_product_attention(
            query, key, value, seen, is_causal=seen is None, scale=self.softmax_scale, enable_gqa=grouped
        )
        return out[..., :width]

    def _packed(self, query, key, value, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Sequences of similar length attend in one call, padded to the longest of them.

        Lengths within a factor of two share a call: a long one, or the padding of a row, stretches no short one.
        """
        starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
        size_class = lengths.double().log2().floor()
        out = value.new_zeros((*query.shape[:-1], value.shape[-1]))
        for chosen in (size_class == size for size in size_class.unique().tolist()):
            offsets = torch.arange(int(lengths[chosen].max()), device=query.device)
            inside = offsets < lengths[chosen, None]  # [b, s]
            places = torch.where(inside, starts[chosen, None] + offsets, 0)
            part = self._attend(*(x[places].transpose(1, 2) for x in (query, key, value))).transpose(1, 2)
            # Causal attention never looks at what follows, so padding behind a sequence needs no mask.
            out = out.index_put((places[inside],), part[inside])
        return out.flatten(1)
