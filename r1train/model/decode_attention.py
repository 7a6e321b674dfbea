"""Rotation of new tokens, and grouped-query attention over a cache: flash attention in place, or scores in full.

Legend: s new tokens per sequence, b sequences, g key-value heads, m query heads of each of them, d head width,
r rotated width, t visible cache slots, c capacity.
"""

import torch

from r1train.model.decode_slots import Slots

FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_WIDTH = 256  # widest head of torch's kernel; it wants a multiple of 8


def rotate_(x: torch.Tensor, slots: Slots) -> torch.Tensor:
    """x [s * b, ., ., r], halves (not pairs) rotated, in place: x cos + (-second half, first half) sin; returns x.

    cos and sin are rounded as in training's plain rotation; of the two products only the first is rounded here.
    """
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return x.mul_(slots.cos).addcmul_(swapped, slots.sin)


def attend(query: torch.Tensor, entries: torch.Tensor, slots: Slots) -> torch.Tensor:
    """query [s, b, g, m, d], entries [b, c, g, 2, d] (key, value) -> [s, b, g * m * d], the query's dtype."""
    if query.is_cuda and len(query) == 1 and query.dtype in FLASH_DTYPES:
        width = query.shape[-1]
        if width <= FLASH_WIDTH and width % 8 == 0:
            return flash_attend(query, entries, slots)
    return scored_attend(query, entries, slots)


def flash_attend(query: torch.Tensor, entries: torch.Tensor, slots: Slots) -> torch.Tensor:
    """`attend` for s = 1 on a GPU, reading keys and values where they lie; never waits for the device.

    torch's flash attention in its form for packed sequences, each of which begins every c slots and uses only those it
    has filled. Without a window it computes a group's query heads together, and long caches in parts.
    """
    width, window = query.shape[-1], slots.window
    before, after = (-1, -1) if window is None or window >= slots.visible else (window - 1, 0)
    keys, values = entries.flatten(0, 1).unbind(dim=2)  # [b * c, g, d]
    query_bounds, slot_bounds, filled = slots.bounds(entries.shape[1])
    output, *_ = torch.ops.aten._flash_attention_forward(
        query[0].flatten(1, 2),
        keys,
        values,
        query_bounds,
        slot_bounds,
        1,
        slots.visible,
        0.0,
        False,
        False,
        scale=width**-0.5,
        window_size_left=before,
        window_size_right=after,
        seqused_k=filled,
    )
    return output.flatten(1)[None]


def scored_attend(query: torch.Tensor, entries: torch.Tensor, slots: Slots) -> torch.Tensor:
    """`attend` with all scores in memory, in float32."""
    keys, values = entries[:, : slots.visible].unbind(dim=3)  # [b, t, g, d]
    scores = torch.einsum("sbgmd,btgd->bgmst", query, keys)
    weights = weights_of(scores, slots.unseen()[:, None], query.shape[-1] ** -0.5)
    return torch.einsum("bgmst,btgd->sbgmd", weights, values).flatten(2)


def weights_of(scores: torch.Tensor, unseen: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(unseen + scale * scores) over the last axis in float32, in the dtype of the scores."""
    return torch.add(unseen, scores, alpha=scale).softmax(dim=-1).to(scores.dtype)
