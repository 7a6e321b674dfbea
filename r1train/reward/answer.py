"""Where an answer stands in a response: between tags, in a box, behind hashes, or as the last number."""

import re
from collections.abc import Callable, Sequence

from r1train.config.schema_eval import AnswerPlace
from r1train.reward.format import extract_answer, format_score

_BOX = re.compile(r"\\f?boxed\s*\{")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
# A sign counts at the start of a number: not in ranges and dates (10-12, x-2) and not with a space behind it (7 - 5).
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])[+-](?!\s))?\$?\s?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


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

    tags: the only <answer>..</answer> after the thinking. boxed: the last \\boxed{..} after the thinking. hashes:
    what follows the last #### on its line (GSM8K's own form). number: the last number after the thinking (the usual
    reading of GSM8K). text: everything after the thinking.
    """
    text = final_text(response)
    for place in places:
        found = extract_answer(response) if place == "tags" else None
        if text is not None and place != "tags":
            found = _READERS[place](text)
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


def last_hashes(text: str) -> str | None:
    """What follows the last #### on its line, a number without currency sign and separators; None for nothing."""
    found = _HASHES.findall(text)
    if not found or not found[-1].strip():
        return None
    number = _NUMBER.fullmatch(found[-1].strip().removesuffix("."))
    return found[-1].strip() if number is None else last_number(number.group())


def format_part(response: str, places: Sequence[AnswerPlace]) -> float:
    """1.0 where the answer stands at the first of these places, else 0.0; for tags, where the whole response has R1's
    form (reward/format.py).
    """
    if places[0] == "tags":
        return format_score(response)
    return float(find_answer(response, places[:1]) is not None)


_READERS: dict[AnswerPlace, Callable[[str], str | None]] = {
    "boxed": last_boxed,
    "hashes": last_hashes,
    "number": last_number,
    "text": str,
}
