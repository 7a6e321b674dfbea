"""Verifiers on right, wrong and adversarial answers."""

from fractions import Fraction

import pytest

from r1train.errors import DataError
from r1train.reward.accuracy import needs_process, verify
from r1train.reward.math_answer import math_accuracy
from r1train.reward.number import parse_number

HEDGES = ["72 or 73", "70 71 72", "71, 72", "{71,72}", "71\\boxed{72}", "\\pm 72", "$71$ $72$", "72;73"]
UNDONE = ["36+36", "6*12", "144/2", "\\frac{144}{2}", "72+0*x", "sqrt(5184)", "2^3*9"]
NOT_IT = [
    "not 72",
    "72 != 71",
    "72<73",
    "73=72",
    "72=72",
    "72!",
    "72i",
    "-72",
    "7 2",
    "720",
    "",
    "nan",
    "\\infty",
    "0/0",
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", Fraction(72)),
        (" -72 ", Fraction(-72)),
        ("\u221272", Fraction(-72)),
        ("+0072.50", Fraction(145, 2)),
        ("1,072", Fraction(1072)),
        ("1,234,567.5", Fraction(2469135, 2)),
        (".5", Fraction(1, 2)),
        ("72.", Fraction(72)),
        ("$72$", Fraction(72)),
        ("\\(72\\)", Fraction(72)),
        ("$\\boxed{x = 72}$.", Fraction(72)),
        ("**72**", Fraction(72)),
        ("$72", Fraction(72)),
        ("-\\$1,000.25", Fraction(-400100, 400)),
        ("50%", Fraction(50)),
        ("50 \\%", Fraction(50)),
        ("-1/2", Fraction(-1, 2)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac34", Fraction(-3, 4)),
        ("\\frac{-3}{4}", Fraction(-3, 4)),
        ("\\frac{1}{-2}", Fraction(-1, 2)),
        ("-\\frac{-1}{-2}", Fraction(-1, 2)),
        ("\\left(\\frac{3}{4}\\right)", Fraction(3, 4)),
        ("\\frac{3}{4}\\text{ cups}", Fraction(3, 4)),
        ("12\\,\\mathrm{cm}^2", Fraction(12)),
        ("45^\\circ", Fraction(45)),
        ("45\u00b0", Fraction(45)),
        ("\\theta = \\frac{3}{4}", Fraction(3, 4)),
        ("x_{12} = -1/2", Fraction(-1, 2)),
        ("1\\,000", Fraction(1000)),
        ("1{,}000{,}000", Fraction(1_000_000)),
        ("1,\\!000", Fraction(1000)),
        ("72\\text{ km/h}", Fraction(72)),
        ("72\\,\\mathrm{m}/\\mathrm{s}^{2}", Fraction(72)),
        ("$72\\text{ miles per hour}$.", Fraction(72)),
        ("\\boxed{72 \\text{ square units}}", Fraction(72)),
        ("72\\text{ sq. cm}", Fraction(72)),
        ("72\\text{ in.}", Fraction(72)),
        ("72\\text{ percent}", Fraction(72)),
        ("45^\\circ\\text{C}", Fraction(45)),
    ],
)
def test_parse_number_reads(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [*HEDGES, *UNDONE, "not 72", "7 2", "", "nan", "1e3", "1,07", "10,72", "1_000", "\u0667\u0662", "2/4", "4/1", "1/0"]
    + ["--72", "72 clips", "1" * 101, "$", ".", "-", "x=", "\\frac{1}{2}{3}", "50%%"]
    + [
        "72\\text{ or 73}",
        "72\\text{ or }73",
        "\\frac{-144}{2}",
        "\\left(1,2\\right)",
        "1\\,00",
        "x_1",
        "\\frac{3}{--4}",
    ],
)
def test_parse_number_refuses(text):
    assert parse_number(text) is None


PROSE = [
    "72\\text{ is not the answer}",
    "72 \\text{ or more}",
    "72\\text{ million}",
    "72\\text{ Dozen}",
    "72\\text{or}",
]
PROSE += [
    "72\\text{ a}\\text{ b}",
    "72\\text{ cm}\\text{ km}",
    "72\\text{ cm}^\\circ",
    "72\\text{ not}",
    "72\\mathrm{i}",
]
PROSE += [
    "72\\text{ thousand per day}",
    "72\\text{ dozen/or}",
    "72\\mathrm{e}^2",
    "72\\text{ than that}",
    "72\\text{ or/and}",
]


@pytest.mark.parametrize("text", PROSE)
def test_prose_behind_a_number_is_no_unit(text):
    """math-verify drops texts, so that the task math would take them for 72."""
    assert parse_number(text) is None
    assert gsm8k(text) == math_accuracy(text, "72") == 0.0
    assert math_accuracy(f"x = {text}", "72") == 0.0


def gsm8k(answer, reference="72"):
    return verify("gsm8k", answer, {"question": "?", "answer": reference, "metadata": {}})


@pytest.mark.parametrize("answer", ["72", "72.0", "$72", "\\boxed{72}", "+72"])
def test_gsm8k_right(answer):
    assert gsm8k(answer) == 1.0


@pytest.mark.parametrize("answer", [*HEDGES, *UNDONE, *NOT_IT, "9**9**9**9", "72" * 10_000])
def test_gsm8k_wrong(answer):
    assert gsm8k(answer) == 0.0


def test_gsm8k_reads_commas_and_never_rounds():
    assert gsm8k("10000", "10,000") == 1.0
    assert gsm8k("0.3333333333333333", "1/3") == 0.0


def test_gsm8k_bad_reference_is_a_data_error():
    with pytest.raises(DataError, match="'seventy' is no plain number"):
        gsm8k("70", "seventy")


@pytest.mark.parametrize("answer", ["72", "$72.0$", "x=72", "\\left(72\\right)", "72\\text{ km}", "72^\\circ"])
def test_math_right_number(answer):
    assert math_accuracy(answer, "72") == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("\\frac{-3}{4}", "-\\frac{3}{4}"),
        ("\\frac{1}{-2}", "-\\frac{1}{2}"),
        ("\\left(\\frac{3}{4}\\right)", "\\frac{3}{4}"),
        ("\\frac{3}{4}\\text{ cups}", "\\frac{3}{4}"),
        ("\\theta = \\frac{3}{4}", "\\frac{3}{4}"),
        ("x_1 = \\frac{3}{4}", "\\frac{3}{4}"),
        ("5/2 \\text{ units}", "2.5"),
        ("1\\,000", "1000"),
        ("1{,}000", "1000"),
    ],
)
def test_math_right_fraction(answer, reference):
    assert math_accuracy(answer, reference) == 1.0
    assert math_accuracy(answer, "7") == 0.0


@pytest.mark.parametrize("answer", [*HEDGES, *UNDONE, *NOT_IT, "72\\text{ or 73}", "\\left(\\frac{144}{2}\\right)"])
def test_math_wrong_number(answer):
    assert math_accuracy(answer, "72") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("0.5", "\\frac{1}{2}", 1.0),
        ("0.51", "\\frac{1}{2}", 0.0),
        ("1+x^2", "x^2+1", 1.0),
        ("y=1+x^2", "x^2+1", 1.0),
        ("1=x^2+1", "x^2+1", 0.0),
        ("\\sqrt{12}", "2\\sqrt{3}", 1.0),
        ("3.4641", "2\\sqrt{3}", 0.0),
        ("(1,2)", "(1,2)", 1.0),
        ("(2,1)", "(1,2)", 0.0),
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", 1.0),
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 5 \\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", 0.0),
        ("\\begin{pmatrix} -2 \\\\ 16 \\end{pmatrix}", "3", 0.0),
        ("\\text{(A)}", "\\text{(A)}", 1.0),
        ("\\text{(B)}", "\\text{(A)}", 0.0),
    ],
)
def test_math_formulas(answer, reference, value):
    assert verify("math", answer, {"answer": reference}) == value


@pytest.mark.parametrize(
    ("answer", "value"), [("13", 1.0), ("+013.0", 1.0), ("4+9", 0.0), ("13 or 14", 0.0), ("113", 0.0), ("", 0.0)]
)
def test_reasoning_gym_verifier(answer, value):
    entry = {"question": "4 + 9 =", "answer": "13", "metadata": {"expression": "4 + 9"}}
    assert verify("chain_sum", answer, entry) == value


def test_unknown_task_names_the_fix():
    with pytest.raises(DataError, match="unknown task 'chain_sums'. Fix: name a reasoning-gym data set or one of"):
        verify("chain_sums", "1", {"answer": "1"})


def test_only_math_verify_needs_a_process():
    assert [needs_process(task) for task in ("math", "aime24", "gsm8k", "chain_sum")] == [True, True, False, False]
