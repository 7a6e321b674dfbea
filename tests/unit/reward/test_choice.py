"""Multiple choice: option letters in all their dresses, and hedges."""

import pytest

from r1train.errors import DataError
from r1train.reward.accuracy import verify
from r1train.reward.choice import choice_accuracy

CHOICES = ["4 m/s", "8 m/s", "Both of them", "8  M/S."]


@pytest.mark.parametrize(
    "answer",
    ["B", " B\n", "(B)", "B.", "B)", "**B**", "$B$", "\\boxed{B}", "$\\boxed{\\text{(B)}}$", "option B", "Answer: B"],
)
def test_right_letter(answer):
    assert choice_accuracy(answer, "B", None) == 1.0
    assert choice_accuracy(answer, "C", None) == 0.0


@pytest.mark.parametrize("answer", ["", "b", "A or B", "A, B", "AB", "B?", "not B", "(A)(B)", "all", "$A$ $B$", "B B"])
def test_no_single_letter(answer):
    assert choice_accuracy(answer, "B", None) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("4 m/s", "A", 1.0),
        ("4  M/S.", "A", 1.0),
        ("A) 4 m/s", "A", 1.0),
        ("(A) 4 m/s", "A", 1.0),
        ("A. Both of them", "A", 0.0),
        ("A. Both of them", "C", 0.0),
        ("both of them", "C", 1.0),
        ("8 m/s", "B", 0.0),  # the text of two options
        ("B: 8 m/s", "B", 1.0),
        ("5 m/s", "A", 0.0),
    ],
)
def test_texts_of_options(answer, reference, value):
    entry = {"question": "?", "answer": reference, "metadata": {"choices": CHOICES}}
    assert verify("multiple_choice", answer, entry) == value


@pytest.mark.parametrize("reference", ["", "b", "E", "4 m/s"])
def test_reference_must_be_an_option(reference):
    with pytest.raises(DataError, match="is no option"):
        choice_accuracy("A", reference, CHOICES)
