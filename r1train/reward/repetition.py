"""Repetition: how much of a text says again what it said before."""

import re

# Scripts that do not divide words: one character counts as a word.
_NO_SPACES = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|[^\w\s]")


def repetition(text: str, *, size: int) -> float:
    """1 - distinct n-grams / n-grams, of words and signs, n = size; in [0, 1), 0.0 for fewer than two n-grams.

    After the n-gram penalty of "Demystifying long chain-of-thought reasoning" (arXiv 2502.03373), which is given at the
    tokens that repeat; here it is one number for the whole response, subtracted with a weight.
    """
    words = _TOKEN.findall(text)
    grams = len(words) - size + 1
    if grams < 2:
        return 0.0
    return 1.0 - len({tuple(words[start : start + size]) for start in range(grams)}) / grams
