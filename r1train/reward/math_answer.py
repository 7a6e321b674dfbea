"""Mathematical equality of LaTeX answers through math-verify, with the ways to fool it closed."""

import re

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Equality, Number, Symbol

from r1train.reward.number import parse_number, without_unit

_CONFIG = (LatexExtractionConfig(),)
# math-verify works a fraction of integers out while it reads; those that are numbers parse_number has read before.
_UNDONE = re.compile(r"/|frac")
# It also drops texts: behind a number, what is not a unit would be a hedge ("or more", "million", "or 73").
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox)(?![a-zA-Z])")


def math_accuracy(answer: str, reference: str) -> float:
    """1.0 when two LaTeX answers are equal, else 0.0. May hang or exhaust memory on hostile input: run it in a grader.

    Two plain numbers are compared exactly, without math-verify. Otherwise: math-verify reads the last number out of
    prose ("71, 72" equals 72 to it) and takes the right side of 73=72, so it gets the answer as one LaTeX formula,
    without a second $ or box, and an equation only as `symbol = value`. Where the reference is a number, the answer
    must be one too: 36+36 and 144/2 are no answers.
    """
    expected, given = parse_number(reference), parse_number(answer)
    if expected is not None and given is not None:
        return 1.0 if expected == given else 0.0
    formula = _bare_formula(answer)
    if formula is None:
        return 0.0
    if expected is not None and (_UNDONE.search(formula) or _TEXT.search(without_unit(formula))):
        return 0.0
    # math-verify's own time-outs use signal.alarm, which only works in a main thread and is this process's backstop.
    gold = parse(f"${_bare_formula(reference) or reference}$", _CONFIG, parsing_timeout=None)
    target = parse(f"${formula}$", _CONFIG, parsing_timeout=None)
    if not gold or not target:
        return 0.0
    value = target[0]
    if isinstance(value, str):  # math-verify could not read it as a formula and would compare the texts
        return 1.0 if value == gold[-1] else 0.0
    # By class: matrices have no is_Equality and no is_Number.
    if isinstance(value, Equality) and not isinstance(gold[0], Equality):
        if not isinstance(value.lhs, Symbol):
            return 0.0
        value = value.rhs
    if expected is not None and not isinstance(value, Number):
        return 0.0
    return 1.0 if verify(gold, target, timeout_seconds=None) else 0.0


def _bare_formula(text: str) -> str | None:
    """The formula without $..$ and one box around it; None when another $ or box is left inside."""
    formula = text.strip().removesuffix(".")
    if formula.startswith("$") and formula.endswith("$"):
        formula = formula.strip("$").strip()
    if formula.startswith("\\boxed{") and formula.endswith("}"):
        formula = formula[len("\\boxed{") : -1]
    return None if "\\boxed" in formula or "$" in formula.replace("\\$", "") else formula
