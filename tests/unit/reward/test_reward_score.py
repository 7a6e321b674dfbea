"""The weighted sum, kept parts, and grader errors as a counted outcome."""

import dataclasses
import math

import pytest

from r1train.config.schema_rl import RewardConfig
from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.reward.score import Scorer

CFG = RewardConfig(name="r1", accuracy=1.0, format=0.5, language=0.25, grader_timeout_s=5.0, grader_processes=0)
PROMPT = Prompt(id="p", task="gsm8k", question="12+30=", answer="42", metadata={}, token_ids=(0,))


def test_hand_numbers():
    pairs = [
        (PROMPT, "<think>12+30=42</think><answer>42</answer>"),
        (PROMPT, "<think>12+30=43</think><answer>43</answer>"),
        (PROMPT, "so <answer>42</answer>"),
        (PROMPT, "<think>12+30"),
    ]
    with Scorer(CFG) as scorer:
        scores = scorer.score(pairs)
    assert scores == [
        Score(1.75, {"format": 1.0, "language": 1.0, "accuracy": 1.0}, None),
        Score(0.75, {"format": 1.0, "language": 1.0, "accuracy": 0.0}, None),
        Score(1.25, {"format": 0.0, "language": 1.0, "accuracy": 1.0}, None),
        Score(0.25, {"format": 0.0, "language": 1.0, "accuracy": 0.0}, None),
    ]


def test_zero_weight_language_is_not_computed_but_format_is():
    cfg = dataclasses.replace(CFG, language=0.0, format=0.0)
    with Scorer(cfg) as scorer:
        (score,) = scorer.score([(PROMPT, "<think>a b</think><answer>42</answer>")])
    assert score == Score(1.0, {"format": 1.0, "accuracy": 1.0}, None)


def test_grader_error_is_not_a_zero():
    # chain_sum's verifier wants text: a reference that is a number makes it raise.
    broken = dataclasses.replace(PROMPT, task="chain_sum", answer=None)
    with Scorer(CFG) as scorer:
        right, wrong = scorer.score(
            [(PROMPT, "<think>1</think><answer>42</answer>"), (broken, "<think>1</think><answer>42</answer>")]
        )
    assert right.error is None and right.value == 1.75
    assert math.isnan(wrong.value) and "accuracy" not in wrong.parts
    assert wrong.error.startswith("TypeError")
    assert wrong.to_row() == {"value": None, "parts": {"format": 1.0, "language": 1.0}, "error": wrong.error}


def test_score_without_error_must_have_a_value():
    with pytest.raises(AssertionError):
        Score(float("nan"), {}, None)


def test_empty_input():
    with Scorer(CFG) as scorer:
        assert scorer.score([]) == []
