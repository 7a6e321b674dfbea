"""What a reward model learns: Bradley-Terry on pairs, cross entropy on labels; it scores at the last token."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from r1train.model.gpt import R1Model
from r1train.model.value_head import ValueHead
from r1train.train.forward import LossOutput, MicroBatch


@dataclass(frozen=True)
class _Head:
    """What the model's output processor needs; None on pipeline stages before the last."""

    value_head: ValueHead | None


def _values(*, hidden_states: torch.Tensor, output_layer: object, context: _Head) -> torch.Tensor:
    """hidden [s, b, h] -> value at every position [b, s], float32. The language model's head is left out."""
    del output_layer
    assert context.value_head is not None, "the last pipeline stage has the head"
    return context.value_head(hidden_states).transpose(0, 1)


def score_positions(batch: MicroBatch) -> torch.Tensor:
    """int64 [n]: the last token, <|eos|>, of every segment of a packed row that is not padding, in order."""
    assert batch.cu_seqlens is not None, "reward models score packed rows"
    bounds = batch.cu_seqlens.long()
    counted = torch.cat([batch.loss_mask.new_zeros(1), batch.loss_mask[0].cumsum(0)])
    return bounds[1:][counted[bounds[1:]] > counted[bounds[:-1]]] - 1


class ScoreObjective:
    """Scores of packed responses. kind pairwise: segments are chosen, rejected, chosen, ...; pointwise: labels in the
    extra `label`. The count that losses and logs are divided by is that of pairs or responses.
    """

    def __init__(self, head: ValueHead | None, kind: Literal["pairwise", "pointwise"]):
        self._context = _Head(head)
        self._kind = kind

    def forward(self, model: R1Model, batch: MicroBatch) -> torch.Tensor:
        return model(
            batch.tokens,
            batch.positions,
            None,
            packed_seq_params=batch.packed_seq_params(),
            padding_mask=batch.padding_mask(),
            output_processor=_values,
            output_processor_context=self._context,
        )

    def loss(self, output: torch.Tensor, batch: MicroBatch) -> LossOutput:
        places = score_positions(batch)
        scores = output[0, places]
        if self._kind == "pairwise":
            return pairwise_loss(scores[0::2], scores[1::2])
        # A label belongs to the <|eos|> as a target, which stands one place before it.
        return pointwise_loss(scores, batch.extras["label"][0, places - 1])


def pairwise_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> LossOutput:
    """-ln sigmoid(chosen - rejected), summed over pairs [n] (Bradley-Terry)."""
    margin = chosen - rejected
    loss = -logsigmoid(margin).sum()
    logs = {"loss": loss.detach(), "pair_accuracy": (margin > 0).float().sum(), "margin": margin.detach().sum()}
    return LossOutput(loss, torch.tensor(len(margin), dtype=torch.int, device=margin.device), logs)


def pointwise_loss(scores: torch.Tensor, labels: torch.Tensor) -> LossOutput:
    """Cross entropy of sigmoid(score) and labels 0 or 1, summed over responses [n]."""
    loss = binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    right = ((scores > 0) == (labels > 0.5)).float().sum()
    logs = {"loss": loss.detach(), "label_accuracy": right, "score": scores.detach().sum()}
    return LossOutput(loss, torch.tensor(len(scores), dtype=torch.int, device=scores.device), logs)


def pair_accuracy(chosen: list[float], rejected: list[float]) -> float:
    """Share of pairs whose chosen response scores higher; a tie counts half."""
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(chosen, rejected, strict=True)]
    return sum(points) / len(points)


def area_under_curve(scores: list[float], labels: list[int]) -> float | None:
    """Probability that a response with label 1 scores above one with label 0, ties half; None with one label only."""
    ones, zeros = labels.count(1), labels.count(0)
    if not ones or not zeros:
        return None
    ordered = sorted(zip(scores, labels, strict=True))
    total, start = 0.0, 0
    while start < len(ordered):
        end = start
        while end < len(ordered) and ordered[end][0] == ordered[start][0]:
            end += 1
        mean_rank = (start + 1 + end) / 2
        total += mean_rank * sum(label for _, label in ordered[start:end])
        start = end
    return (total - ones * (ones + 1) / 2) / (ones * zeros)
