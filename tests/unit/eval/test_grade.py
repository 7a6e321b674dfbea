"""Samples of every kind of suite, scored by hand before the program was asked."""

import pytest

from r1train.errors import DataError
from r1train.eval.benchmark import suite_report, suite_row
from r1train.eval.generate import Target
from r1train.eval.grade import program
from r1train.eval.suites import load_suite
from r1train.reward.jail import probe
from r1train.rollout.types import group_from_row

isolated = pytest.mark.skipif(probe().backend == "none", reason="this host cannot isolate programs")

GSM8K = {"question": "Ann has 60 sheep and sells a tenth twice. How many?", "answer": "60/10=6\n60-12=48\n#### 48"}
MATH = {"problem": "Solve $x^2=2$ for $x>0$.", "answer": "\\sqrt{2}", "unique_id": "test/1"}
CHOICE = {"question": "Which is a prime?", "choices": ["4", "7", "9"], "answer": "B"}
CAPITAL = {"question": "Capital of France?", "answer": "Paris"}
HUMANEVAL = {
    "task_id": "H/0",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum of the even ones."""\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(x for x in xs if x % 2 == 0)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2, 4]) == 6\n    assert candidate([]) == 0\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function to double a number.",
    "code": "def double(x): return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(-1) == -2"],
    "test_setup_code": "",
}
IFEVAL = {
    "key": 5,
    "prompt": "Write two words without commas, in lower case.",
    "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
    "kwargs": [{"relation": "less than", "num_words": 3}, {"relation": None}],
}

NUMBERS = [
    ("<think>60-12</think><answer>48</answer>", True),
    ("<think>60-12</think><answer>$48.00</answer>", True),
    ("<think>60-12</think><answer>47</answer>", False),
    ("<think>60-12</think>There are 48 sheep.", True),
    ("<think>60-12</think>First 54, then 48.", True),
    ("<think>60-12</think>48 of 60 are left: 12 fewer.", False),
    ("<think>so it is 48", False),
    ("<think>60-12</think>none", False),
    ("<think>60-12</think><answer>36+12</answer>", False),
    ("60/10=6\n#### 48", True),
]
FORMULAS = [
    ("<think>t</think>$\\boxed{\\sqrt{2}}$", True),
    ("<think>t</think>$x = \\boxed{2^{1/2}}$", True),
    ("<think>t</think>$\\boxed{\\frac{2}{\\sqrt2}}$", True),
    ("<think>t</think>$\\boxed{x=\\sqrt{2}}$", True),
    ("<think>t</think><answer>\\sqrt{2}</answer>", True),
    ("<think>t</think>$\\boxed{1.41}$", False),
    ("<think>t</think>$\\boxed{\\pm\\sqrt{2}}$", False),
    ("<think>t</think>the root of two", False),
    ("<think>t</think>\\boxed{2}", False),
    ("<think>\\boxed{\\sqrt{2}}", False),
]
LETTERS = [
    ("<answer>B</answer>", True),
    ("<answer>(B)</answer>", True),
    ("<answer>7</answer>", True),
    ("<answer>B) 7</answer>", True),
    ("<answer>\\boxed{B}</answer>", True),
    ("<answer>A</answer>", False),
    ("<answer>A or B</answer>", False),
    ("<answer>b</answer>", False),
    ("<answer>B) 9</answer>", False),
    ("B", False),
]
TEXTS = [
    ("<answer>Paris</answer>", True),
    ("<think>a</think>\n<answer> Paris\n</answer>", True),
    ("<answer>paris</answer>", False),
    ("<answer>Paris, France</answer>", False),
    ("<answer>Lyon</answer>", False),
    ("Paris", False),
    ("<answer></answer>", False),
    ("<answer>Paris</answer><answer>Lyon</answer>", False),
    ("<think>Paris", False),
    ("<think>Lyon?</think><answer>Paris</answer>", True),
]
TOTAL = "def total(xs):\n    return sum(x for x in xs if x % 2 == 0)\n"
FUNCTIONS = [
    (f"Here:\n```python\n{TOTAL}```", True),
    (TOTAL, True),
    ("    return sum(x for x in xs if x % 2 == 0)", True),
    ("result = 0\nfor x in xs:\n    result += x * (x % 2 == 0)\nreturn result", True),
    ("def total(xs: List[int]) -> int:\n    return sum(x for x in xs if not x % 2)", True),
    ("<think>def total(xs): return 0</think>```\n" + TOTAL + "```", True),
    ("def total(xs):\n    return sum(xs)", False),
    ("def total(xs):\n    return 6", False),
    ("def total(xs)\n    return 6", False),
    ("def sum_even(xs):\n    return sum(x for x in xs if x % 2 == 0)", False),
]
DOUBLES = [
    ("def double(x): return 2 * x", True),
    ("```python\ndef double(x):\n    return x + x\n```", True),
    ("```\ndef double(x): return 3 * x\n```\nbetter:\n```\ndef double(x): return x << 1\n```", True),
    ("double = lambda x: x * 2", True),
    ("def double(x): return 4", False),
    ("def double(x): return abs(x) * 2", False),
    ("def twice(x): return 2 * x", False),
    ("def double(x): raise SystemExit", False),
    ("I cannot do that.", False),
    ("<think>def double(x): return 2 * x", False),
]
OBEDIENT = [
    ("two words", True),
    ("<think>long, with commas, and more</think>two words", True),
    ("one", True),
    ("<answer>two words</answer>", True),
    ("two-three", True),
    ("one, two", False),
    ("now three words", False),
    ("", False),
    ("<think>two words", False),
    ("a, b, c", False),
]
KINDS = [
    ("number", GSM8K, NUMBERS, ("tags", "number")),
    ("math", MATH, FORMULAS, ("tags", "boxed")),
    ("choice", CHOICE, LETTERS, ("tags",)),
    ("exact", CAPITAL, TEXTS, ("tags",)),
    pytest.param("humaneval", HUMANEVAL, FUNCTIONS, ("text",), marks=isolated),
    pytest.param("mbpp", MBPP, DOUBLES, ("text",), marks=isolated),
    ("ifeval", IFEVAL, OBEDIENT, ("text",)),
]


@pytest.mark.parametrize(("kind", "row", "samples", "places"), KINDS)
def test_ten_samples_by_hand(kind, row, samples, places, judge, tmp_path):
    suite, group, judged = judge(kind, row, [text for text, _ in samples], places)
    prompt = group.prompt
    assert [one.outcome.error for one in judged] == [None] * 10
    assert [one.outcome.correct for one in judged] == [right for _, right in samples]
    target = Target(tmp_path, "rl1/step_00000003", policy_version=3)
    report = suite_report(suite, [prompt], [judged], target=target, key="k")
    assert report.pass_at_1 == pytest.approx(sum(right for _, right in samples) / 10)
    assert (report.cons_at_k is None) == (kind in ("humaneval", "mbpp", "ifeval"))
    stored = suite_row(group, judged)
    assert group_from_row(stored).samples[9].text == samples[9][0]
    assert [score["parts"]["accuracy"] for score in stored["scores"]] == [float(right) for _, right in samples]


def test_votes_count_normal_forms(judge, tmp_path):
    """Three spellings of a half against two of a wrong third: the majority is right, though no text leads."""
    texts = ["\\boxed{0.5}", "\\boxed{1/2}", "\\boxed{\\frac{1}{2}}", "\\boxed{\\frac13}", "\\boxed{\\frac13}"]
    suite, group, judged = judge("math", {"problem": "1/2?", "answer": "\\frac12"}, texts, ("boxed",))
    assert [one.outcome.answer for one in judged] == ["1/2", "1/2", "1/2", "1/3", "1/3"]
    report = suite_report(suite, [group.prompt], [judged], target=Target(tmp_path, "x", 0), key="k")
    assert (report.pass_at_1, report.cons_at_k) == (pytest.approx(0.6), 1.0)


def test_ifeval_rates_by_hand(judge, tmp_path):
    # Both; only the commas; neither; loosely both, once the first line is gone, strictly only the words do not fit.
    texts = ["two words", "now three words", "a, b, c", "Sure here it is:\ntwo words"]
    suite, group, judged = judge("ifeval", IFEVAL, texts, ("text",))
    report = suite_report(suite, [group.prompt], [judged], target=Target(tmp_path, "x", 0), key="k")
    assert report.pass_at_1 == 0.25
    assert report.details == {
        "prompt_loose": 0.5,
        "instruction_strict": (2 + 1 + 0 + 1) / 8,
        "instruction_loose": 5 / 8,
    }


def test_program_keeps_the_prompts_imports_and_indents_bodies(suite_file, tokenizer):
    (prompt,) = load_suite(suite_file("humaneval", [HUMANEVAL]), tokenizer, max_prompt_tokens=300)
    assert program(TOTAL, prompt) == "from typing import List\n\n\n" + TOTAL
    assert program("return 1", prompt) == HUMANEVAL["prompt"] + "    return 1\n"
    assert program("a = 1\nreturn a", prompt).endswith("    a = 1\n    return a")
    # Only the first line lost its indentation.
    assert program("if xs:\n        return 1\n    return 0", prompt).endswith(
        "    if xs:\n        return 1\n    return 0"
    )


def test_prompts_of_a_suite(suite_file, tokenizer):
    suite = suite_file("mbpp", [MBPP], template="{question} Tests: {tests}")
    (prompt,) = load_suite(suite, tokenizer, max_prompt_tokens=300)
    assert (prompt.id, prompt.task) == ("a_mbpp/7", "a_mbpp")
    assert prompt.question == (
        "Write a function to double a number. Tests: assert double(2) == 4\nassert double(-1) == -2"
    )
    assert prompt.metadata["tests"][1] == {"snippet": "\nassert double(-1) == -2\n"}
    choice = suite_file("choice", [CHOICE], template="{question}\n{choices}")
    assert load_suite(choice, tokenizer, max_prompt_tokens=300)[0].question.endswith("A) 4\nB) 7\nC) 9")
    twice = suite_file("exact", [CAPITAL, CAPITAL, CAPITAL], problems=2)
    assert [p.id for p in load_suite(twice, tokenizer, max_prompt_tokens=300)] == ["a_exact/0", "a_exact/1"]


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("math", [], "empty, suite a_math has no problems"),
        ("math", [{"problem": "x"}], "line 1: 'answer' is missing or blank"),
        ("math", [{"problem": "", "answer": "1"}], "no text in 'question' or 'problem'"),
        (
            "math",
            [{"id": "a", "problem": "x", "answer": 1}] * 2,
            r"1 ids occur more than once, for example \['a_math/a'\]",
        ),
        ("number", [{"problem": "x", "answer": "\\pi"}], "is no number"),
        ("choice", [{**CHOICE, "answer": "D"}], "none of the letters A, B, C"),
        ("humaneval", [{**HUMANEVAL, "entry_point": "other"}], "does not begin a function 'other'"),
        ("mbpp", [{**MBPP, "test_list": []}], "'test_list' is no list of texts"),
        (
            "mbpp",
            [MBPP, {**MBPP, "test_list": ["assert double(2) == LIMIT"]}],
            "1 of 2 rows .*\n.*line 2: .* uses LIMIT",
        ),
        ("mbpp", [{**MBPP, "test_list": ["assert double(2) =="]}], "line 1: a snippet is no Python"),
        ("humaneval", [{**HUMANEVAL, "test": HUMANEVAL["test"] + "    LIMIT + 1\n"}], "line 1: a snippet uses LIMIT"),
        ("ifeval", [{**IFEVAL, "kwargs": [{}]}], "one object per instruction"),
        ("ifeval", [{**IFEVAL, "instruction_id_list": ["a:b", "c:d"]}], "'a:b' is not known"),
        ("exact", [{"question": "long " * 300, "answer": "x"}], "longer than 300 tokens, the longest is a_exact/0"),
    ],
)
def test_bad_files_are_said(kind, rows, message, suite_file, tokenizer):
    with pytest.raises(DataError, match=message):
        load_suite(suite_file(kind, rows), tokenizer, max_prompt_tokens=300)
