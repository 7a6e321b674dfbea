"""Answers in responses and their normal forms, by hand."""

import pytest

from r1train.eval.extract import normal_form
from r1train.reward.answer import final_text, find_answer, last_boxed, last_number

BOXED = "<think>is it \\boxed{1}?</think>So the result is $\\boxed{\\frac{3}{4}}$, about 0.75."


@pytest.mark.parametrize(
    ("response", "places", "answer"),
    [
        ("<think>t</think><answer> 7 </answer>", ("tags",), "7"),
        ("<think>t</think>It is 7.", ("tags",), None),
        ("<think>t</think>It is 7.", ("tags", "number"), "7"),
        (BOXED, ("tags", "boxed"), "\\frac{3}{4}"),
        (BOXED, ("number",), "0.75"),
        ("<think>t \\boxed{5}", ("boxed", "number", "text"), None),
        ("no tags: \\boxed{5} then \\boxed{6}", ("boxed",), "6"),
        ("<think>a</think> plain text ", ("text",), "plain text"),
        ("<think>a</think> <answer>inner</answer>", ("text",), "inner"),
        ("<think>a</think>  ", ("text",), None),
        # Two pairs of tags are a hedge: no answer there, but the last box is one.
        ("<answer>1</answer><answer>2</answer>", ("tags",), None),
        ("The answer is\n#### 1,234", ("number",), "1234"),
    ],
)
def test_find_answer(response, places, answer):
    assert find_answer(response, places) == answer


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed {2}", "2"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{open", None),
        ("\\boxed{ }", None),
        ("none", None),
    ],
)
def test_boxes(text, box):
    assert last_boxed(text) == box


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("she earns $1,072.50.", "1072.50"),
        ("from 3 to -12 degrees", "-12"),
        ("it costs $18", "18"),
        ("a .5 share", ".5"),
        ("16-3-4=9", "9"),
        ("none", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_final_text_needs_the_end_of_the_thinking():
    assert final_text("<think>7") is None
    assert final_text("a</think>b</think> c ") == "c"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1/2", "\\frac{1}{2}", True),
        ("0.5", "\\dfrac12", True),
        ("1,000", "1000", True),
        ("$\\boxed{x + 1}$", "x+1", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})", True),
        ("\\text{Evelyn}", "Evelyn", True),
        ("90^\\circ", "90", True),
        ("x+1", "1+x", False),
        ("2", "3", False),
    ],
)
def test_normal_forms_of_latex(one, other, same):
    assert (normal_form(one, latex=True) == normal_form(other, latex=True)) is same


def test_normal_form_of_text_keeps_case_and_joins_spaces():
    assert normal_form(" New   York\n", latex=False) == "New York"
    assert normal_form("007", latex=False) == normal_form("7.0", latex=False) == "7"
