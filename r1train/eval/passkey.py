"""Passkey retrieval (arXiv 2305.16300 section 4.2): a number in the middle of filler text, asked for at the end.

Every prompt is made here, so that its length in tokens and the number's place are known.
"""

import itertools
from collections.abc import Sequence

from r1train.config.schema_eval import PasskeyConfig
from r1train.data.passkey_text import NEEDLE, Passkey, draw_key
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.dist.seed import stream
from r1train.errors import DataError
from r1train.reward.answer import final_text
from r1train.rollout.types import Sample

TASK = "passkey"


def passkey_prompts(passkey: PasskeyConfig, tokenizer: Tokenizer, *, seed: int) -> list[Prompt]:
    """`problems` prompts of every length and depth, lengths first; the keys depend on seed, length, depth and number.

    A prompt has `length` tokens or up to a filler sentence less, chat tokens included. metadata: length, depth (as
    asked) and place (tokens before the needle / tokens). No key is one that the corpus builtin:passkey trains on.
    Raises DataError for a length that even no filler fits.
    """
    cells = itertools.product(passkey.lengths, passkey.depths, range(passkey.problems))
    return [_prompt(passkey, tokenizer, cell, seed) for cell in cells]


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
    key = draw_key(random, passkey.digits, evaluated=True)
    prompt = Passkey(tokenizer, key, depth, chat=passkey.form == "chat")
    sentences = prompt.longest(length)
    if sentences is None:
        what = f"{length} tokens do not hold key and question"
        raise DataError(f"eval.passkey.lengths: {what}. Fix: {len(prompt.tokens(0))} or more")
    text, ids = prompt.text(sentences), prompt.tokens(sentences)
    place = len(tokenizer.encode(text[: text.index(NEEDLE.format(key=key))])) / len(ids)
    metadata = {"length": length, "depth": depth, "place": round(place, 4)}
    return Prompt(f"{TASK}/{length}/{depth:g}/{number}", TASK, text, key, metadata, tuple(ids))
