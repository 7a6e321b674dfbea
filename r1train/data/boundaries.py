"""Tokens that hold punctuation and the line break behind it, split again in a share of their places (V3 section 4.1).

Pre-tokenizers such as DeepSeek-V3's (and GPT-4's, Qwen's, Llama 3's) make one token of a full stop and the line break
behind it. A prompt that ends with the full stop then stands where training never was. V3 splits some of such tokens in
training; its report does not say how many.
"""

import hashlib
import unicodedata

import numpy as np

from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError

_BREAKS = "\r\n"


class BoundarySplit:
    """Splits in documents of one tokenizer. merged: whether a token can be split, bool [vocabulary]."""

    def __init__(self, rate: float, seed: int, tokenizer: Tokenizer):
        """rate: share of the places that are split; seed: other places.

        Raises DataError where the vocabulary has no such token.
        """
        self._parts = merged_tokens(tokenizer)
        if not self._parts:
            what = "the tokenizer has no token of punctuation and a line break, so there is nothing to split"
            raise DataError(f"{what}. Fix: train it with the pre-tokenizer deepseek_v3, or split none")
        self._rate, self._seed = rate, seed
        self.merged = np.zeros(tokenizer.vocab_size, dtype=bool)
        self.merged[list(self._parts)] = True

    def apply(self, ids: np.ndarray, text: str) -> np.ndarray:
        """ids, int64 [n], of a document with this text, with a share of the places split. A pure function."""
        places = np.flatnonzero(self.merged[ids])
        digest = hashlib.blake2b(text.encode(), digest_size=16, person=f"split/{self._seed}".encode()[:16]).digest()
        draws = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(len(places))
        chosen = places[draws < self._rate]
        if not len(chosen):
            return ids
        found, start = [], 0
        for place in chosen.tolist():
            found += [ids[start:place], self._parts[int(ids[place])]]
            start = place + 1
        return np.concatenate([*found, ids[start:]])


def merged_tokens(tokenizer: Tokenizer) -> dict[int, np.ndarray]:
    """Tokens of punctuation or signs (a space before them allowed) and then line breaks -> their two parts' ids."""
    found = {}
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([token])
        signs = text.rstrip(_BREAKS)
        is_sign = [unicodedata.category(character)[0] in "PS" for character in signs.removeprefix(" ")]
        if len(signs) < len(text) and is_sign and all(is_sign) and tokenizer.encode(text) == [token]:
            parts = [*tokenizer.encode(signs), *tokenizer.encode(text[len(signs) :])]
            found[token] = np.array(parts, dtype=np.int64)
    return found
