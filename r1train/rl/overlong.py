"""Responses near the token budget: DAPO's soft overlong punishment and overlong filtering (arXiv 2503.14476 s3.4)."""

from dataclasses import replace

from r1train.config.schema_rl import OverlongConfig
from r1train.reward.base import Score
from r1train.rollout.types import Sample


def overlong_penalty(length: int, *, budget: int, buffer: int) -> float:
    """0 up to budget - buffer tokens, then linearly down to -1 at the budget, -1 beyond (eq. 13)."""
    if length <= budget - buffer:
        return 0.0
    return max((budget - buffer - length) / buffer, -1.0)


def shaped_score(sample: Sample, score: Score, cfg: OverlongConfig, *, budget: int) -> Score:
    """The score with the penalty added to its value and noted as the part "overlong"; unchanged under other rules.

    A sample that could not be graded stays without a value.
    """
    if cfg.rule != "penalty":
        return score
    assert cfg.buffer_tokens is not None, "the config check asks for it"
    penalty = overlong_penalty(len(sample.tokens), budget=budget, buffer=cfg.buffer_tokens)
    return replace(score, value=score.value + penalty, parts={**score.parts, "overlong": penalty})


def is_trained(sample: Sample, cfg: OverlongConfig) -> bool:
    """Whether the loss sees this sample: overlong filtering leaves truncated ones out, also out of its denominators.

    They still count in their group's advantages.
    """
    return not (cfg.rule == "mask" and sample.truncated)
