"""Passkey prompts (arXiv 2305.16300 section 4.2): a number in the middle of filler text, asked for at the end.

The evaluation (eval/passkey.py) and the corpus builtin:passkey (data/passkey_corpus.py) use the same text, never the
same key: a hash of its digits says to which of the two a key belongs.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from r1train.data.chat import prompt_tokens
from r1train.data.split import document_draw
from r1train.data.tokenizer import Tokenizer

INTRODUCTION = "There is a number hidden in a lot of other text. Find it and remember it. "
FILLER = (
    "The grass is green. ",
    "The sky is blue. ",
    "The sun is yellow. ",
    "Here we go. ",
    "There and back again. ",
)
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "What is the pass key? The pass key is"
EVALUATED_SHARE = 0.2


def passkey_text(key: str, *, before: int, after: int) -> str:
    """The prompt's text with so many filler sentences before and after the needle."""
    sentences = list(itertools.islice(itertools.cycle(FILLER), before + after))
    needle = NEEDLE.format(key=key)
    return INTRODUCTION + "".join(sentences[:before]) + needle + "".join(sentences[before:]) + QUESTION


def is_evaluated(key: str) -> bool:
    """Whether the evaluation may ask for this key (a fifth of all keys); no training document has one of these."""
    return document_draw(key, "passkey") < EVALUATED_SHARE


def draw_key(random: np.random.Generator, digits: int, *, evaluated: bool) -> str:
    """A number of so many digits (2 or more), of the evaluation or of training, drawn until it is of that side."""
    assert digits > 1, "some of the one-digit numbers would have to be on both sides"
    while True:
        key = str(int(random.integers(10 ** (digits - 1), 10**digits)))
        if is_evaluated(key) == evaluated:
            return key


@dataclass(frozen=True)
class Passkey:
    """One prompt. depth: share of the filler that stands before the needle; chat: in the chat frame, or plain text."""

    tokenizer: Tokenizer
    key: str
    depth: float
    chat: bool

    def text(self, sentences: int) -> str:
        """With so many filler sentences."""
        before = math.floor(self.depth * sentences + 0.5)
        return passkey_text(self.key, before=before, after=sentences - before)

    def tokens(self, sentences: int) -> list[int]:
        """The prompt as it is asked."""
        text = self.text(sentences)
        return prompt_tokens(self.tokenizer, text) if self.chat else self.tokenizer.encode(text)

    def longest(self, length: int) -> int | None:
        """Most filler sentences with which the prompt has at most `length` tokens; None where even 0 are too many."""
        least = len(self.tokens(0))
        if least > length:
            return None
        # Sentences are encoded nearly independently, so a guess is nearly right, and one from there the more.
        cycle, count, found = len(self.tokenizer.encode("".join(FILLER))), 0, least
        for _ in range(2):
            count = max(0, count + len(FILLER) * (length - found) // cycle)
            found = len(self.tokens(count))
        while found > length:
            count -= 1
            found = len(self.tokens(count))
        while len(self.tokens(count + 1)) <= length:
            count += 1
        return count
