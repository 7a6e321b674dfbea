"""Plain numbers in answers: a strict reading that no prose, list or undone sum can pass."""

import re
from fractions import Fraction
from math import gcd

from r1train.errors import DataError

# Longer than any sensible final answer; bounds the work of exact arithmetic on what a model writes.
MAX_CHARS = 100

# A variable before an equals sign: x, x_1, x_{12}, \theta, \theta_0.
_SYMBOL_IS = r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_(?:[a-zA-Z0-9]|\{[a-zA-Z0-9]+\}))?\s*="
# What may stand behind a number: a unit in words, degrees. No digits: "72 or 73" is a hedge.
_UNIT = r"(?:\\[,;! ])*(?:\\(?:text|mathrm|textrm|mbox)\{[a-zA-Z .]+\}(?:\^\{?[0-9]\}?)?|\^\{?\\circ\}?|\u00b0)"
_WRAPPERS = tuple(
    re.compile(rf"{left}\s*(.+?)\s*{right}")
    for left, right in (
        (r"\$", r"\$"),
        (r"\\\(", r"\\\)"),
        (r"\\\[", r"\\\]"),
        (r"\\boxed\{", r"\}"),
        (r"\*\*", r"\*\*"),
        (r"\\left\(", r"\\right\)"),
        (_SYMBOL_IS, ""),
        ("", _UNIT),
    )
)
_CURRENCY = re.compile(r"([+-]?)\s*\\?[$\u20ac\u00a3]\s*(?=[0-9.])")
_PERCENT = re.compile(r"\s*\\?%$")
# Thousands: 1,000 as typed, 1\,000 and 1{,}000 as typeset.
_NUMBER = re.compile(r"([+-]?)((?:[0-9]{1,3}(?:(?:,|\\,|\\;|\\ |\{,\}|,\\!)[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)")
_FRACTION = re.compile(r"([+-]?)([0-9]+)\s*/\s*([0-9]+)")
_LATEX_FRACTION = re.compile(
    r"([+-]?)\\[dt]?frac\s*(?:\{\s*([+-]?)([0-9]+)\s*\}\s*\{\s*([+-]?)([0-9]+)\s*\}|([0-9])([0-9]))"
)


def number_accuracy(answer: str, reference: str) -> float:
    """1.0 for exact equality of two plain numbers, else 0.0. Raises DataError when the reference is none."""
    return 1.0 if parse_number(answer) == reference_number(reference) else 0.0


def reference_number(reference: str) -> Fraction:
    """The value of a reference answer. Raises DataError when it is no plain number."""
    value = parse_number(reference)
    if value is None:
        fix = "a number as 72, -0.5 or 1/2, or the task math for answers that are formulas"
        raise DataError(f"the reference answer {reference!r} is no plain number. Fix: {fix}")
    return value


def parse_number(text: str) -> Fraction | None:
    """Exact value of a text that is one number, else None.

    Read: 72, -72, +72, 1,072, 1\\,072, 1{,}072, 72.0, .5, 1/2, \\frac{1}{2}, \\frac{-1}{2}, each optionally within
    $..$, \\(..\\), \\boxed{..}, \\left(..\\right) or **..**, after `x =`, `x_1 =` or a currency sign, before a percent
    sign, a unit as \\text{ cm}, degrees or a full stop (percent is a unit here: 50% is 50).
    Not read: words, several numbers, sums, digits of other scripts, and fractions that are not in lowest terms, since
    144/2 for 72 is a division left undone.
    """
    if len(text) > MAX_CHARS:
        return None
    text = text.strip().replace("\u2212", "-").removesuffix(".")
    for _ in _WRAPPERS:  # they nest: $\boxed{x = 72}$
        for wrapper in _WRAPPERS:
            if match := wrapper.fullmatch(text):
                text = match.group(1)
    text = _PERCENT.sub("", _CURRENCY.sub(r"\1", text) if _CURRENCY.match(text) else text)
    if match := _NUMBER.fullmatch(text):
        value = Fraction(re.sub(r"[^0-9.]", "", match.group(2)).removesuffix("."))
    elif match := (_FRACTION.fullmatch(text) or _LATEX_FRACTION.fullmatch(text)):
        numerator, denominator = (int(part) for part in match.groups() if part is not None and part.isdigit())
        if denominator < 2 or gcd(numerator, denominator) != 1:
            return None
        value = Fraction(numerator, denominator)
    else:
        return None
    return -value if match.groups().count("-") % 2 else value
