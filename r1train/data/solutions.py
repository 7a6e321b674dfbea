"""Written-out solutions of generated problems: one short step after the other, down to the answer."""

import math
from collections.abc import Callable

from r1train.data.problems import GSM8K, Problem
from r1train.errors import DataError


def solution_steps(problem: Problem) -> list[str]:
    """Steps of the solution, ASCII, without the final answer.

    Raises DataError for a task without written solutions.
    """
    solve = _SOLVERS.get(problem.task)
    if solve is None:
        raise DataError(
            f"task {problem.task!r}: no written solutions, so no cold-start or worked examples. "
            f"Fix: set its cold_start to 0, or take one of {', '.join(sorted(_SOLVERS))}"
        )
    return solve(problem.metadata)


def has_worked_solutions(task: str) -> bool:
    """Whether worked pre-training examples can be generated for this task."""
    return task in _SOLVERS and task != GSM8K


def _chain_sum(metadata: dict) -> list[str]:
    """Running totals: 4 + 7 - 3 -> 4+7=+11, +11-3=+08.

    Totals carry a sign and one digit more than the longest term, so that the term a step needs always stands the same
    number of tokens back. A model of 1 M parameters learns to copy over a fixed distance early in pre-training; with
    totals of changing width that ability came suddenly, late, or with some seeds not at all (docs/tiny.md).
    """
    first, *rest = metadata["expression"].split()
    width = 2 + max(len(term.lstrip("-")) for term in (first, *rest))
    total, steps, shown_total = int(first), [], first
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        total = total + int(term) if operator == "+" else total - int(term)
        # A negative term keeps its sign in brackets: 4-(-7)=+11.
        shown = f"({term})" if term.startswith("-") else term
        steps.append(f"{shown_total}{operator}{shown}={total:+0{width}d}")
        shown_total = f"{total:+0{width}d}"
    return steps or [f"{total}={total}"]


def _gcd(metadata: dict) -> list[str]:
    """Euclid's algorithm, number by number: 12, 8 -> 12%8=4, 8%4=0."""
    steps, current = [], metadata["numbers"][0]
    for number in metadata["numbers"][1:]:
        high, low = current, number
        while low:
            steps.append(f"{high}%{low}={high % low}")
            high, low = low, high % low
        current = math.gcd(current, number)
    return steps


def _count_bits(metadata: dict) -> list[str]:
    """Halving, with a running count of odd numbers: 5 -> 5:1, 2:1, 1:2."""
    number, count, steps = metadata["number"], 0, []
    while number:
        count += number % 2
        steps.append(f"{number}:{count}")
        number //= 2
    return steps


def _letter_counting(metadata: dict) -> list[str]:
    """Running count over the words: h in "hundred oh" -> hundred:1, oh:2."""
    count, steps = 0, []
    for word in metadata["span"]:
        count += word.lower().count(metadata["target_letter"].lower())
        steps.append(f"{word}:{count}")
    return steps


def _number_sorting(metadata: dict) -> list[str]:
    """Insertion into a growing list: 3 1 2 -> 3; 1,3; 1,2,3."""
    done: list[str] = []
    steps = []
    for number in metadata["original_numbers"]:
        done = sorted([*done, number], key=float, reverse=metadata["direction"] == "descending")
        steps.append(",".join(done))
    return steps


def _spell_backward(metadata: dict) -> list[str]:
    """Growing reversed word: sun -> s, us, nus."""
    word = metadata["word"]
    return [word[end - 1 :: -1] for end in range(1, len(word) + 1)]


def _gsm8k(metadata: dict) -> list[str]:
    return metadata["solution"].split("\n")


_SOLVERS: dict[str, Callable[[dict], list[str]]] = {
    "chain_sum": _chain_sum,
    "gcd": _gcd,
    "count_bits": _count_bits,
    "letter_counting": _letter_counting,
    "number_sorting": _number_sorting,
    "spell_backward": _spell_backward,
    GSM8K: _gsm8k,
}
