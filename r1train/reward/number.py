"""Plain numbers in answers: a strict reading that no prose, list or undone sum can pass."""

import re
from fractions import Fraction
from math import gcd

from r1train.errors import DataError

# Longer than any sensible final answer; bounds the work of exact arithmetic on what a model writes.
MAX_CHARS = 100

# A variable before an equals sign: x, x_1, x_{12}, \theta, \theta_0.
_SYMBOL_IS = r"(?:[a-zA-Z]|\\[a-zA-Z]+)(?:_(?:[a-zA-Z0-9]|\{[a-zA-Z0-9]+\}))?\s*="
# What may stand behind a number: degrees, or one unit of one word. No digits: "72 or 73" is a hedge.
_WORD = r"(?:(?:square|cubic|sq\.?|cu\.?) )?[a-zA-Z]{1,12}\.?"
_TEXT = r"\\(?:text|mathrm|textrm|mbox)"
_POWER = r"(?:\^\{?[2-4]\}?)?"
_UNIT = re.compile(
    rf"(?P<rest>.*?\S)\s*(?P<unit>(?:\\[,;! ])*(?:{_TEXT}\{{\s*{_WORD}(?:(?:/| per ){_WORD})?{_POWER}\s*\}}"
    rf"(?:/{_TEXT}\{{{_WORD}\}})?{_POWER}|(?:\^\{{?\\circ\}}?|\u00b0)(?:{_TEXT}\{{\s*[CF]\s*\}})?))"
)
_UNIT_LETTERS = frozenset("ACFJKLNVWdghlms")
# Words that say another number, or that the number is not meant.
_NO_UNIT = re.compile(
    r"(?:hundred|thousand|million|billion|trillion|dozen)s?|bn|mn|mil|mln|zero|one|two|three|five|six|seven|eight|nine|ten"
    r"|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|four"
    r"|half|halves|(?:third|fourth|fifth|sixth|eighth|tenth|hundredth|thousandth)s?"
    r"|pi|squared|cubed|factorial|plus|minus|divided|over|under|modulo|mod|base|power|root|remainder|infinity|infinite"
    r"|negative|positive|and|or|not|nor|neither|either|no|none|never|is|isnt|are|arent|was|be|than|then|but|if|else"
    r"|except|unless|maybe|perhaps|probably|possibly|about|approx|approximately|around|roughly|almost|nearly|more|less"
    r"|least|most|fewer|above|below|between|to|the|an|of|it|its|this|that|from|by|with|so|vs|versus|wrong|incorrect"
    r"|false|true|right|correct|unknown|undefined|also|only|instead|ish",
    re.IGNORECASE,
)
_LONE_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]+")
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
    sign, one unit as \\text{ cm} or \\mathrm{km/h}, degrees or a full stop (percent is a unit here: 50% is 50).
    Not read: words (3\\text{ or more}, 5\\text{ dozen}), several numbers, sums, digits of other scripts, and fractions
    that are not in lowest terms, since 144/2 for 72 is a division left undone.
    """
    if len(text) > MAX_CHARS:
        return None
    text = _bare(text.strip().replace("\u2212", "-").removesuffix("."))
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


def without_unit(text: str) -> str:
    """Text without the one unit at its end: a word that neither says another number nor takes back what was said."""
    match = _UNIT.fullmatch(text)
    if match is None:
        return text
    words = _LONE_WORD.findall(match["unit"])
    fits = all(word in _UNIT_LETTERS if len(word) == 1 else not _NO_UNIT.fullmatch(word) for word in words)
    return match["rest"] if fits else text


def _bare(text: str) -> str:
    """Text without what may be around a number: brackets of all kinds, `x =`, and one unit."""
    has_unit = True
    for _ in range(len(_WRAPPERS) + 1):  # they nest: $\boxed{x = 72}$
        for wrapper in _WRAPPERS:
            if match := wrapper.fullmatch(text):
                text = match.group(1)
        bare = without_unit(text) if has_unit else text
        has_unit = has_unit and bare == text
        text = bare
    return text
