"""Log-probability of each label and entropy of each distribution, from logits that may be split over TP ranks.

One fp32 copy of the logits of 16,384 tokens over a vocabulary of 129,280 takes 8.5 GB, and a cross entropy in plain
PyTorch passes over such copies a dozen times. Here logits stay as the model wrote them and are read a chunk at a time,
once forward and once backward: torch.compile makes one kernel of each direction.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# Logits that are looked at together: bounds what is held for a moment where nothing is compiled.
CHUNK_VALUES = 2**26


def label_logprobs(
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    group: torch.distributed.ProcessGroup | None,
    chunk_values: int = CHUNK_VALUES,
) -> tuple[Tensor, Tensor]:
    """Logits [..., V / tp], labels [...] -> log-probabilities and entropies [...], float32, in nats.

    Of softmax(logits / temperature) over the whole V; computed in float32. Entropies carry no gradient. group: the
    ranks that hold the other parts of the vocabulary, in order; None where this rank holds all of it.
    """
    if group is not None and group.size() == 1:
        group = None
    return _LabelLogprobs.apply(logits, labels, temperature, group, chunk_values)


class _LabelLogprobs(torch.autograd.Function):
    """Keeps logits in their own dtype and a number per row for the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        labels: Tensor,
        temperature: float,
        group: torch.distributed.ProcessGroup | None,
        chunk_values: int,
    ) -> tuple[Tensor, Tensor]:
        rows, flat = logits.flatten(0, -2), labels.flatten()
        vocabulary = rows.shape[1]
        local = flat - (0 if group is None else group.rank() * vocabulary)
        held = (local >= 0) & (local < vocabulary)
        chunks = -(-rows.numel() // chunk_values)
        sums = torch.cat([_row_sums(part, temperature) for part in rows.chunk(chunks)], dim=1)
        label = rows.gather(1, local.clamp(0, vocabulary - 1)[:, None])[:, 0].float() / temperature
        largest, total, weighted = _over_ranks(sums, group)
        label = torch.where(held, label - largest, 0.0)
        if group is not None:
            torch.distributed.all_reduce(label, group=group)
        ctx.save_for_backward(logits, torch.where(held, local, -1), largest + total.log())
        ctx.temperature, ctx.chunks = temperature, chunks
        entropies = (total.log() - weighted / total).view(labels.shape)
        ctx.mark_non_differentiable(entropies)
        return (label - total.log()).view(labels.shape), entropies

    @staticmethod
    def backward(ctx: FunctionCtx, of_logprobs: Tensor, of_entropies: Tensor) -> tuple[Tensor | None, ...]:
        del of_entropies
        logits, local, normaliser = ctx.saved_tensors
        rows, scale = logits.flatten(0, -2), of_logprobs.flatten() / ctx.temperature
        parts = zip(*(one.chunk(ctx.chunks) for one in (rows, local, normaliser, scale)), strict=True)
        gradient = torch.cat([_gradient(*part, ctx.temperature) for part in parts])
        return gradient.view(logits.shape), None, None, None, None


@torch.compile
def _row_sums(logits: Tensor, temperature: float) -> Tensor:
    """[n, V] -> [3, n]: the largest z = logit / temperature, and with it as shift, sum(e^z) and sum(e^z z)."""
    scaled = logits.float() / temperature
    largest = scaled.amax(dim=-1)
    shifted = scaled - largest[:, None]
    weight = shifted.exp()
    return torch.stack([largest, weight.sum(dim=-1), (weight * shifted).sum(dim=-1)])


@torch.compile
def _gradient(logits: Tensor, label: Tensor, normaliser: Tensor, scale: Tensor, temperature: float) -> Tensor:
    """[n, V]: (1 at the label, where it is here, minus the probability) * scale, in the logits' dtype."""
    probability = (logits.float() / temperature - normaliser[:, None]).exp()
    columns = torch.arange(logits.shape[1], device=logits.device)
    chosen = (columns == label[:, None]).float()
    return ((chosen - probability) * scale[:, None]).to(logits.dtype)


def _over_ranks(sums: Tensor, group: torch.distributed.ProcessGroup | None) -> Tensor:
    """The sums [3, n] of one part of the vocabulary -> those of all of it."""
    if group is None:
        return sums
    largest = sums[0].clone()
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
    shift = sums[0] - largest
    parts = torch.stack([sums[1], sums[2] + sums[1] * shift]) * shift.exp()
    torch.distributed.all_reduce(parts, group=group)
    return torch.stack([largest, *parts])
