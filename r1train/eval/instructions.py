"""Verifiable instructions of IFEval (arXiv 2311.07911): which ones a response follows, strictly and loosely.

The data name each instruction and its arguments; the rules are in instruction_rules.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1train.eval.instruction_rules import ARGUMENTS, RULES


@dataclass(frozen=True)
class Followed:
    """Verdict per instruction, in the order of the prompt's list."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def check_instructions(ids: Sequence[str], kwargs: Sequence[Mapping[str, Any]]) -> str | None:
    """None, or what is wrong with a prompt's instructions: an unknown one, arguments that are missing or too many."""
    for name, arguments in zip(ids, kwargs, strict=True):
        if name not in RULES:
            return f"the instruction {name!r} is not known"
        wanted = ARGUMENTS[name]
        if set(arguments) != set(wanted):
            return f"{name} has the arguments {sorted(arguments)}, it takes {sorted(wanted)}"
        for argument, kinds in wanted.items():
            if not isinstance(arguments[argument], kinds):
                return f"{name}: {argument} = {arguments[argument]!r} has a wrong type"
    return None


def follow(response: str, ids: Sequence[str], kwargs: Sequence[Mapping[str, Any]]) -> Followed:
    """Whether each instruction is followed. Loosely: by the response or by one of its variants (section 3.2 there)."""
    pairs = list(zip(ids, kwargs, strict=True))
    variants = loose_variants(response)
    return Followed(
        strict=tuple(_holds(name, response, arguments) for name, arguments in pairs),
        loose=tuple(any(_holds(name, text, arguments) for text in variants) for name, arguments in pairs),
    )


def loose_variants(response: str) -> list[str]:
    """The response, without its first line, its last line and both, and each of these without asterisks."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]


def _holds(name: str, text: str, arguments: Mapping[str, Any]) -> bool:
    """A blank response follows nothing."""
    return bool(text.strip()) and RULES[name](text, **arguments)
