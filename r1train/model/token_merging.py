"""Soft token merging: middle layers on one state per window of tokens, inflated again behind them. Off by default.

An experiment of our own: neither DeepSeek paper has it, and a description of the models elsewhere claims it.
docs/token_merging.md. Legend: s tokens, w window, n = ceil(s / w) windows, b sequences, h hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch.nn.functional import linear, pad, rms_norm

from r1train.config.schema_model import TokenMergingConfig


class Merge(MegatronModule):
    """hidden [s, b, h] -> [n, b, h]: of every window the mean of its tokens, weighted by a softmax over learned scores.

    A last window that is not full is filled up with zeros; Inflate gives its state to nobody.
    """

    def __init__(self, config: TransformerConfig, window: int):
        super().__init__(config)
        self.window = window
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        length, width = hidden.shape[0], hidden.shape[-1]
        full = pad(hidden, (0, 0, 0, 0, 0, -length % self.window)).unflatten(0, (-1, self.window))  # [n, w, b, h]
        scores = linear(rms_norm(full.float(), (width,), eps=self.config.layernorm_epsilon), self.weight.float())
        return (scores.softmax(dim=1) * full.float()).sum(dim=1).to(hidden.dtype)


class Inflate(MegatronModule):
    """tokens [s, b, h] from before the merging, and what the layers added to the merged ones [n, b, h] -> [s, b, h].

    Token t gets, times a learned gate per dimension, what was added to the last window that was complete at t: its own
    where it is the window's last token, else the one before; the tokens of the first window before its end get
    nothing. So nothing of a later token reaches an earlier one. Layers that add nothing leave the tokens as they were.
    """

    def __init__(self, config: TransformerConfig, window: int):
        super().__init__(config)
        self.window = window
        self.weight = torch.nn.Parameter(torch.ones(config.hidden_size, dtype=config.params_dtype))

    def forward(self, tokens: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        complete = (torch.arange(tokens.shape[0], device=tokens.device) + 1) // self.window  # windows complete at t
        of_tokens = torch.cat((torch.zeros_like(added[:1]), added))[complete]
        return tokens + self.weight * of_tokens


class WindowEnds(torch.nn.Module):
    """A rotary embedding whose position j is that of the last token of window j, for layers that see merged tokens."""

    def __init__(self, rotary: torch.nn.Module, window: int):
        super().__init__()
        self.rotary, self.window = rotary, window
        self.get_rotary_seq_len: Callable[..., int] = rotary.get_rotary_seq_len

    def forward(self, length: int, packed_seq: bool = False) -> tuple[torch.Tensor, float]:
        """Angles [length, 1, 1, d] and their scale; length in windows."""
        angles, scale = self.rotary(length * self.window, packed_seq=packed_seq)
        return angles[self.window - 1 :: self.window], scale

    def get_cached_cos_sin(
        self, length: int, dtype: torch.dtype, packed_seq: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, [length, 1, 1, d] each, for the fused rotation."""
        both = self.rotary.get_cached_cos_sin(length * self.window, dtype=dtype, packed_seq=packed_seq)
        cos, sin = (part[self.window - 1 :: self.window].contiguous() for part in both)
        return cos, sin


@dataclass(frozen=True)
class _Unmerged:
    """What goes from the first to the last of the layers: tokens [s, b, h] and what was made of them [n, b, h]."""

    tokens: torch.Tensor
    merged: torch.Tensor


class MergedLayer(TransformerLayer):
    """A decoder layer on merged tokens. The first of them merges, the last one inflates.

    In between the tokens travel as `context`, which megatron-core hands from layer to layer for cross-attention.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        *,
        window: int,
        first: bool,
        last: bool,
        **options: object,
    ):
        super().__init__(config, submodules, **options)
        self.window = window
        self.self_attention.rotary_pos_emb = WindowEnds(self.self_attention.rotary_pos_emb, window)
        self.merge = Merge(config, window) if first else None
        self.inflate = Inflate(config, window) if last else None

    def forward(self, hidden_states, *, context=None, padding_mask=None, **options):
        """hidden_states [s, b, h] in the first layer, else [n, b, h]; padding_mask bool [b, s] or None."""
        if self.merge is not None:
            context = _Unmerged(hidden_states, self.merge(hidden_states))
            hidden_states = context.merged
        mask = merged_padding(padding_mask, context.tokens, self.window)
        hidden_states, _ = super().forward(hidden_states=hidden_states, padding_mask=mask, **options)
        if self.inflate is None:
            return hidden_states, context
        return self.inflate(context.tokens, hidden_states - context.merged), None


def merged_padding(padding_mask: torch.Tensor | None, tokens: torch.Tensor, window: int) -> torch.Tensor | None:
    """bool [b, n]: windows that the router does not count, because their last token is padding or not there."""
    length, sequences = tokens.shape[:2]
    if padding_mask is None:
        if length % window == 0:
            return None
        padding_mask = torch.zeros(sequences, length, dtype=torch.bool, device=tokens.device)
    return pad(padding_mask, (0, -length % window), value=True)[:, window - 1 :: window]


def with_merging(block: TransformerBlockSubmodules, merging: TokenMergingConfig | None) -> TransformerBlockSubmodules:
    """The block with layers first_layer to last_layer (from 1) on merged tokens; the same block without merging."""
    if merging is None:
        return block
    layers = list(block.layer_specs)
    for number in merging.layers:
        params = {
            "window": merging.window,
            "first": number == merging.first_layer,
            "last": number == merging.last_layer,
        }
        layers[number - 1] = replace(
            layers[number - 1], module=MergedLayer, params={**layers[number - 1].params, **params}
        )
    return replace(block, layer_specs=layers)
