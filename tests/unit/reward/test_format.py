"""Format score and extraction on well-formed, malformed and hostile responses."""

import pytest

from r1train.reward.format import extract_answer, extract_thinking, format_score

GOOD = "<think>3+4=7</think><answer>7</answer>"


@pytest.mark.parametrize("response", [GOOD, f" \n{GOOD}\n", "<think></think>\n<answer>a\nb</answer>"])
def test_format_is_one(response):
    assert format_score(response) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "7",
        "<think>3+4=7</think>",
        "<answer>7</answer>",
        "<answer>7</answer><think>3+4=7</think>",
        GOOD + "so 7",
        "so " + GOOD,
        "<think>a</think> so <answer>7</answer>",
        GOOD + GOOD,
        "<think>a</think><think>b</think><answer>7</answer>",
        "<think>a</think><answer>6</answer><answer>7</answer>",
        "<think>a<think>b</think><answer>7</answer>",
        "<think>the <answer>6</answer></think><answer>7</answer>",
        "<think>a</think><answer> \n</answer>",
        "<think>a</think><answer>7",
        "<THINK>a</THINK><answer>7</answer>",
    ],
)
def test_format_is_zero(response):
    assert format_score(response) == 0.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (GOOD, "7"),
        ("<think>a</think> text <answer> 7 \n</answer> text", "7"),
        ("<answer>7</answer>", "7"),
        ("<think>try <answer>6</answer></think><answer>7</answer>", "7"),
        ("<think>try <answer>6</answer>", None),
        ("<think>a</think><answer>6</answer><answer>7</answer>", None),
        ("<think>a</think><answer>6<answer>7</answer>", None),
        ("<think>a</think></answer>7<answer>", None),
        ("<think>a</think><answer> </answer>", None),
        ("<think>a</think><answer>7", None),
        ("<answer>7</answer><think>", None),
        ("", None),
    ],
)
def test_extract_answer(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "thinking"),
    [
        (GOOD, "3+4=7"),
        ("<think>cut off", "cut off"),
        ("no tags <answer>7</answer>", "no tags"),
        ("x<think>a</think>b</think><answer>7</answer>", "a"),
    ],
)
def test_extract_thinking(response, thinking):
    assert extract_thinking(response) == thinking
