"""Per-token loss -> one number, as token weights that do not depend on the split over micro-batches and dp ranks."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]


@dataclass(frozen=True, kw_only=True)
class GlobalCounts:
    """Counts over all micro-batches and all dp ranks of one optimizer step.

    sequences: responses (those whose tokens are all masked too); tokens: response tokens with mask 1.
    max_response_tokens: the constant L of Dr. GRPO, the response budget of the rollout.
    """

    sequences: int
    tokens: int
    max_response_tokens: int


def token_weights(sequence_ids: Tensor, lengths: Tensor, *, counts: GlobalCounts, aggregation: Aggregation) -> Tensor:
    """Weights [T], float32, such that the sum of weight * loss over every token of the step is the aggregate.

    sequence_ids: int64 [T], the local sequence each token belongs to, -1 on prompt and padding (weight 0).
    lengths: [S], response tokens of each local sequence, whole even where this rank holds a part of it.
    seq-mean-token-mean: 1 / (sequences * length), GRPO (arXiv 2402.03300 eq. 3). token-mean: 1 / tokens, DAPO
    (2503.14476 section 3.3). seq-mean-token-sum-norm: 1 / (sequences * L), Dr. GRPO (2503.20783).
    Gradients must be summed, not averaged, over dp ranks.
    """
    inside = sequence_ids >= 0
    match aggregation:
        case "seq-mean-token-mean":
            per_sequence = 1.0 / (counts.sequences * lengths.double())
        case "token-mean":
            per_sequence = torch.full(lengths.shape, 1.0 / counts.tokens, dtype=torch.float64)
        case "seq-mean-token-sum-norm":
            scale = 1.0 / (counts.sequences * counts.max_response_tokens)
            per_sequence = torch.full(lengths.shape, scale, dtype=torch.float64)
        case _:
            raise ValueError(f"aggregation = {aggregation!r} is not known")
    weights = torch.zeros(sequence_ids.shape, dtype=torch.float64, device=sequence_ids.device)
    weights[inside] = per_sequence.to(sequence_ids.device)[sequence_ids[inside]]
    return weights.float()
