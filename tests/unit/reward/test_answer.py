"""Answers in free text as rewards: where they are looked for, and what counts as the right format."""

import dataclasses

import pytest

from r1train.config.schema_rl import RewardConfig
from r1train.data.prompts import Prompt
from r1train.reward.answer import find_answer, format_part, last_hashes, last_number
from r1train.reward.score import Scorer

TAGS = "<think>a</think><answer>7</answer>"
CONFIG = RewardConfig(
    name="t", accuracy=1.0, format=0.25, language=0.0, grader_timeout_s=5.0, grader_processes=0, answer_from=("tags",)
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("between 10-12", "12"),
        ("3-5", "5"),
        ("x-2", "2"),
        ("on 2024-01-15", "15"),
        ("7 - 5", "5"),
        ("(1)-3", "3"),
        ("- 5", "5"),
        ("it is -5.", "-5"),
        ("x=-5", "-5"),
        ("(-0.5)", "-0.5"),
        ("-$1,072.50", "-1072.50"),
        ("costs $3", "3"),
        ("-.5", "-.5"),
        ("none", None),
    ],
)
def test_the_sign_of_a_last_number(text, number):
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3\n#### 42", "42"),
        ("#### 1,234.", "1234"),
        ("#### $5.50", "5.50"),
        ("#### 3\n#### 4\nthat is all 9", "4"),
        ("####-2", "-2"),
        ("#### 42 clips", "42 clips"),
        ("#### \nthe end 5", None),
        ("### 42", None),
    ],
)
def test_hashes(text, answer):
    assert last_hashes(text) == answer


def test_first_place_counts():
    text = "So \\boxed{6}.\n#### 7\nOr 8"
    orders = (("hashes", "boxed"), ("boxed", "hashes"), ("number", "boxed"), ("tags", "number"))
    assert [find_answer(text, places) for places in orders] == ["7", "6", "8", "8"]
    assert find_answer("<think>#### 7", ("hashes", "number")) is None


def test_format_is_that_of_the_first_place():
    assert [format_part(text, ("tags", "number")) for text in (TAGS, "it is 7", "a" + TAGS)] == [1.0, 0.0, 0.0]
    assert [format_part(text, ("hashes", "number")) for text in ("#### 7", "it is 7", TAGS)] == [1.0, 0.0, 0.0]
    assert [format_part(text, ("number",)) for text in ("it is 7", "none", TAGS)] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("places", "values"),
    [
        (("tags",), [1.25, 0.0, 0.0, 0.0]),
        (("hashes", "number"), [1.0, 1.25, 1.0, 0.25]),
    ],
)
def test_rewards(places, values):
    """Tags, hashes, a bare number, and hashes with a wrong one, under either way to look for the answer."""
    prompt = Prompt("p", "gsm8k", "3 + 4?", "7", {}, (1,))
    texts = [TAGS, "3 + 4 is\n#### 7.0", "It is 7 of them.", "7, no:\n#### 8"]
    with Scorer(dataclasses.replace(CONFIG, answer_from=places)) as scorer:
        assert [score.value for score in scorer.score([(prompt, text) for text in texts])] == values
