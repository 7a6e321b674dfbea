"""Format of a response: <think>...</think><answer>...</answer>, and the two texts inside it."""

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_WHOLE = re.compile(r"\s*<think>.*?</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def format_score(response: str) -> float:
    """1.0 for exactly one <think>..</think> followed by exactly one <answer>..</answer> that is not blank, else 0.0.

    Nothing but white space may stand before, between and after (DeepSeek-R1 section 2.2, format reward).
    """
    match = _WHOLE.fullmatch(response)
    once = all(response.count(tag) == 1 for tag in TAGS)
    return 1.0 if match and once and match.group(1).strip() else 0.0


def extract_answer(response: str) -> str | None:
    """Stripped text of the only <answer>..</answer>, None where there is none, it is blank or ambiguous.

    It must stand after the thinking: an answer inside an unfinished <think> does not count. Several answers, or tags
    inside an answer, are a hedge and do not count either.
    """
    if "<think>" in response and "</think>" not in response:
        return None
    tail = response.rpartition("</think>")[2]
    if tail.count("<answer>") != 1 or tail.count("</answer>") != 1 or "<think>" in tail:
        return None
    answer, closed, _ = tail.partition("<answer>")[2].partition("</answer>")
    return answer.strip() or None if closed else None


def extract_thinking(response: str) -> str:
    """The chain of thought: text between <think> and </think>; without them, all text before <answer>."""
    before = response.partition("</think>")[0].partition("<answer>")[0]
    _, opened, inside = before.partition("<think>")
    return (inside if opened else before).strip()
