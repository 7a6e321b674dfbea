"""Verifiers of our own for those data sets of reasoning-gym whose scorers run, or are fooled by, what a model writes.

Nine of its scorers (version 0.1.25) hand the answer to eval or to sympy's reader, which evaluates it; two more do so
with fields of the problem; some pay for any text, or can be made to hang. tests/unit/reward/test_gym_calls.py names
every such call in the installed package, so that another version cannot bring new ones unseen.
"""

import ast
import json
import math
import re
from collections.abc import Callable
from typing import Any

from r1train.reward.expression import NotInGrammar, arithmetic

Entry = dict[str, Any]

# What sympy simplifies, and what is counted, searched or played move by move: it may hang, so it needs a process.
MAY_HANG = frozenset(
    {"coin_flip", "intermediate_integration", "polynomial_multiplication", "propositional_logic", "rubiks_cube"}
) | {"rush_hour", "simple_integration"}
# Without a verdict of its own: it forwards to data sets that only its configuration names.
REFUSED = frozenset({"composite"})
_FRACTION = re.compile(
    r"[+-]?[0-9]{1,50}/[0-9]{1,50}|[+-]?(?:[0-9]{1,50}(?:\.[0-9]{0,50})?|\.[0-9]{1,50})(?:[eE][+-]?[0-9]{1,2})?"
)
_COMPLEX = re.compile(r"[0-9ijIJ.+\-() ]+")


def _countdown(answer: str, entry: Entry) -> bool:
    return _makes(answer, entry["metadata"]["target"], entry["metadata"]["numbers"])


def _puzzle24(answer: str, entry: Entry) -> bool:
    return _makes(answer, 24, entry["metadata"]["numbers"])


def _makes(answer: str, target: int, numbers: list[int]) -> bool:
    """Whether an expression uses exactly these numbers and has exactly this value."""
    try:
        value, used = arithmetic(answer)
    except NotInGrammar:
        return False
    return value == target and sorted(used) == sorted(numbers)


def _antiderivative(answer: str, entry: Entry) -> bool:
    from r1train.reward.algebra import is_antiderivative  # noqa: PLC0415 - sympy takes half a second

    return is_antiderivative(answer, entry["metadata"]["integrand"], entry["metadata"]["variable"])


def _polynomial(answer: str, entry: Entry) -> bool:
    from r1train.reward.algebra import is_same_polynomial  # noqa: PLC0415 - sympy takes half a second

    return is_same_polynomial(answer, entry["answer"])


def _bitwise(answer: str, entry: Entry) -> bool:
    """Numbers in any base that Python writes; the reference is the value of the problem, which is not worked out."""
    try:
        given = int(answer, 0)
    except ValueError:
        return False
    return given == int(entry["answer"], 0)


# The scorers of matrices, insertions and queens pay 0.1 or 0.5 for a Python list, which is no full solution here.
OWN: dict[str, Callable[[str, Entry], bool]] = {
    "binary_matrix": lambda answer, entry: answer == entry["answer"],
    "bitwise_arithmetic": _bitwise,
    "countdown": _countdown,
    # reasoning-gym takes any text for True.
    "game_of_life_halting": lambda answer, entry: answer.strip().casefold() == entry["answer"].strip().casefold(),
    "intermediate_integration": _antiderivative,
    "n_queens": lambda answer, entry: answer in entry["metadata"]["valid_answers"],
    "polynomial_multiplication": _polynomial,
    "puzzle24": _puzzle24,
    "simple_integration": _antiderivative,
    "spiral_matrix": lambda answer, entry: answer.strip() == entry["answer"].strip(),
    "string_insertion": lambda answer, entry: answer == entry["answer"],
}
# Answers that a scorer would hang on or be fooled by ("nan" is at no distance from anything) never reach it.
READABLE: dict[str, re.Pattern[str]] = {"coin_flip": _FRACTION, "complex_arithmetic": _COMPLEX}


def sorting_entry(entry: Entry) -> Entry:
    """An entry of number_sorting whose answer is JSON, which its scorer reads without eval.

    Raises ValueError or SyntaxError for an answer that is no list of literals.
    """
    reference = ast.literal_eval(entry["answer"])
    if not isinstance(reference, list) or not all(math.isfinite(float(number)) for number in reference):
        raise ValueError(f"the reference answer {entry['answer']!r} is no list of numbers")
    return {**entry, "answer": json.dumps(reference)}
