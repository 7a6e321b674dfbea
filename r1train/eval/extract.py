"""Where an answer stands in a response, and its normal form for majority votes."""

import re
from collections.abc import Sequence

from r1train.config.schema_eval import AnswerPlace
from r1train.reward.format import extract_answer
from r1train.reward.number import parse_number

_BOX = re.compile(r"\\f?boxed\s*\{")
_NUMBER = re.compile(r"[+-]?\$?\s?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|[+-]?\$?\s?\.[0-9]+")
_SPACING = re.compile(r"\\[,;:! ]|\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|~|\s+")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac([0-9])([0-9])")


def final_text(response: str) -> str | None:
    """What the response says after its thinking, inside <answer>..</answer> where there is one pair; None if nothing.

    A response that never ends its thinking has no final text.
    """
    if "<think>" in response and "</think>" not in response:
        return None
    tail = response.rpartition("</think>")[2]
    inside = extract_answer(response)
    text = inside if inside is not None else tail.strip()
    return text or None


def find_answer(response: str, places: Sequence[AnswerPlace]) -> str | None:
    """The answer at the first of these places that holds one; None where none does.

    tags: the only <answer>..</answer> after the thinking. boxed: the last \\boxed{..} after the thinking. number: the
    last number after the thinking (the usual reading of GSM8K). text: everything after the thinking.
    """
    text = final_text(response)
    for place in places:
        found = extract_answer(response) if place == "tags" else None
        if text is not None and place != "tags":
            found = {"boxed": last_boxed, "number": last_number, "text": str}[place](text)
        if found is not None:
            return found
    return None


def last_boxed(text: str) -> str | None:
    """Stripped content of the last \\boxed{..}, braces matched; None where there is none, it is blank or open."""
    starts = list(_BOX.finditer(text))
    if not starts:
        return None
    begin, depth = starts[-1].end(), 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
        if depth == 0:
            return text[begin:place].strip() or None
    return None


def last_number(text: str) -> str | None:
    """The last number in a text, without currency sign and thousands separators: '... $1,072.50.' -> '1072.50'."""
    found = _NUMBER.findall(text)
    return re.sub(r"[$,\s]", "", found[-1]) if found else None


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
