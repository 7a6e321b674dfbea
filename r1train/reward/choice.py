"""Multiple choice: one option's letter, or exactly its text."""

import re
from collections.abc import Sequence

from r1train.errors import DataError

_LETTER = re.compile(r"[A-Z]")
_WRAPPERS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$(.+)\$",
        r"\\boxed\{(.+)\}",
        r"\\text(?:bf)?\{(.+)\}",
        r"\*\*(.+)\*\*",
        r"\((.+)\)",
        r"(?:[Oo]ption|[Aa]nswer:?)\s+(.+)",
        r"(.+)[.)]",
    )
)


def choice_accuracy(answer: str, reference: str, choices: Sequence[str] | None) -> float:
    """1.0 when the answer names the reference's option and no other, else 0.0 (DeepSeek-R1: option match).

    reference: a letter. choices: texts of the options in order, None where they are not known; then only letters count.
    Read: B, (B), B., $\\boxed{B}$, **B**, option B, `B) its text`, its text. A letter before the text of another option
    is wrong, as are several letters and small ones (a is a word). Raises DataError for a reference that is no option.
    """
    return 1.0 if _chosen(answer, choices or ()) == check_option(reference, choices) else 0.0


def check_option(reference: str, choices: Sequence[str] | None) -> str:
    """The letter of a reference answer. Raises DataError when it is none of an option."""
    wanted = reference.strip()
    if not _LETTER.fullmatch(wanted) or (choices is not None and ord(wanted) - ord("A") >= len(choices)):
        raise DataError(f"the reference answer {reference!r} is no option. Fix: a capital letter of one of the choices")
    return wanted


def _chosen(answer: str, choices: Sequence[str]) -> str | None:
    text = _bare(answer)
    if _LETTER.fullmatch(text):
        return text
    letters = [chr(ord("A") + position) for position in range(len(choices))]
    same = [letter for letter, choice in zip(letters, choices, strict=True) if _folded(choice) == _folded(answer)]
    if len(same) == 1:
        return same[0]
    for letter, choice in zip(letters, choices, strict=True):
        label = re.fullmatch(rf"\(?{letter}[.):]\s*(.+)", text, re.DOTALL)
        if label and _folded(label.group(1)) == _folded(choice):
            return letter
    return None


def _bare(answer: str) -> str:
    text = answer.strip()
    for _ in _WRAPPERS:  # they nest: $\boxed{\text{(B)}}$
        for wrapper in _WRAPPERS:
            if match := wrapper.fullmatch(text):
                text = match.group(1).strip()
    return text


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")
