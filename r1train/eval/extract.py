"""The normal form of an answer, for majority votes."""

import re

from r1train.reward.answer import last_boxed
from r1train.reward.number import parse_number

_SPACING = re.compile(r"\\[,;:! ]|\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|~|\s+")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac([0-9])([0-9])")


def normal_form(answer: str, *, latex: bool) -> str:
    """Answers with the same normal form are one candidate of a majority vote.

    Numbers by their exact value (0.5 = 1/2 = \\frac{1}{2}); LaTeX without spacing, \\text, \\left and \\right and with
    one spelling of fractions; other text with single spaces.
    """
    number = parse_number(answer)
    if number is not None:
        return str(number)
    if not latex:
        return " ".join(answer.split())
    text = answer.strip().removesuffix(".").strip("$")
    inside = last_boxed(text)
    text = _TEXT.sub(r"\1", inside if inside is not None else text)
    text = _SPACING.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\$", ""))
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).replace("^\\circ", "").replace("^{\\circ}", "")
    value = parse_number(text)
    return text if value is None else str(value)
