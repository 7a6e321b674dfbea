"""Passkey retrieval (arXiv 2305.16300 section 4.2): a number in the middle of filler text, asked for at the end.

Every prompt is made here, so that its length in tokens and the number's place are known.
"""

import itertools
import math
from collections.abc import Sequence

from r1train.config.schema_eval import PasskeyConfig
from r1train.data.chat import prompt_tokens
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.dist.seed import stream
from r1train.errors import DataError
from r1train.eval.extract import final_text
from r1train.rollout.types import Sample

TASK = "passkey"
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


def passkey_prompts(passkey: PasskeyConfig, tokenizer: Tokenizer, *, seed: int) -> list[Prompt]:
    """`problems` prompts of every length and depth, lengths first; the keys depend on seed, length, depth and number.

    A prompt has `length` tokens or up to a filler sentence less, chat tokens included. metadata: length, depth (as
    asked) and place (tokens before the needle / tokens). Raises DataError for a length that even no filler fits.
    """
    cells = itertools.product(passkey.lengths, passkey.depths, range(passkey.problems))
    return [_prompt(passkey, tokenizer, cell, seed) for cell in cells]


def passkey_text(key: str, *, before: int, after: int) -> str:
    """The prompt's text with so many filler sentences before and after the needle."""
    sentences = list(itertools.islice(itertools.cycle(FILLER), before + after))
    needle = NEEDLE.format(key=key)
    return INTRODUCTION + "".join(sentences[:before]) + needle + "".join(sentences[before:]) + QUESTION


def found_key(sample: Sample, prompt: Prompt) -> bool:
    """Whether the response's first run of digits is the key."""
    digits = "".join(
        itertools.takewhile(str.isdigit, itertools.dropwhile(lambda c: not c.isdigit(), final_text(sample.text) or ""))
    )
    return digits == prompt.answer


def grid(prompts: Sequence[Prompt], correct: Sequence[bool]) -> dict[str, float]:
    """Accuracy of each cell, '<length>@<depth>', and of each length and each depth ('<length>', '@<depth>')."""
    cells: dict[str, list[bool]] = {}
    for prompt, right in zip(prompts, correct, strict=True):
        length, depth = prompt.metadata["length"], prompt.metadata["depth"]
        for name in (f"{length}@{depth:g}", f"{length}", f"@{depth:g}"):
            cells.setdefault(name, []).append(right)
    return {name: sum(values) / len(values) for name, values in cells.items()}


def batches(prompts: Sequence[Prompt], *, tokens: int, ranks: int) -> list[list[Prompt]]:
    """Neighbouring prompts that all ranks together take at a time: about `tokens` prompt tokens on each."""
    parts: list[list[Prompt]] = []
    for _, same in itertools.groupby(prompts, key=lambda prompt: prompt.metadata["length"]):
        of_length = list(same)
        size = ranks * max(1, tokens // of_length[0].metadata["length"])
        parts += [of_length[start : start + size] for start in range(0, len(of_length), size)]
    return parts


def _prompt(passkey: PasskeyConfig, tokenizer: Tokenizer, cell: tuple[int, float, int], seed: int) -> Prompt:
    """The longest prompt that fits: filler is added in whole sentences until one more would be too many."""
    length, depth, number = cell
    random = stream(seed, TASK, length, f"{depth:g}", number)
    key = str(int(random.integers(10 ** (passkey.digits - 1), 10**passkey.digits)))

    def tokens(sentences: int) -> tuple[str, list[int]]:
        before = math.floor(depth * sentences + 0.5)
        text = passkey_text(key, before=before, after=sentences - before)
        return text, prompt_tokens(tokenizer, text) if passkey.form == "chat" else tokenizer.encode(text)

    least = len(tokens(0)[1])
    if least > length:
        raise DataError(f"eval.passkey.lengths: {length} tokens do not hold key and question. Fix: {least} or more")
    # Sentences are encoded nearly independently, so the first guess is nearly right.
    count = len(FILLER) * (length - least) // len(tokenizer.encode("".join(FILLER)))
    while len(tokens(count)[1]) > length:
        count -= 1
    while len(tokens(count + 1)[1]) <= length:
        count += 1
    text, ids = tokens(count)
    place = len(tokenizer.encode(text[: text.index(NEEDLE.format(key=key))])) / len(ids)
    metadata = {"length": length, "depth": depth, "place": round(place, 4)}
    return Prompt(f"{TASK}/{length}/{depth:g}/{number}", TASK, text, key, metadata, tuple(ids))
