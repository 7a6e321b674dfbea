"""Texts -> the token ids of documents as they stand in a corpus: FIM where asked for, an end-of-document token."""

from collections.abc import Iterator, Sequence

import numpy as np

from r1train.data.fim import FimRule, fim_parts
from r1train.data.tokenizer import Tokenizer

# The tokenizers library needs about 150 bytes a token while it encodes, so few characters at a time.
_BATCH_CHARACTERS = 1 << 20
_PIECE_CHARACTERS = 1 << 18


def encode_documents(texts: Sequence[str], tokenizer: Tokenizer, fim: FimRule | None = None) -> Iterator[np.ndarray]:
    """int64 [n] per text, in order; the last id is document_end_id. fim needs a tokenizer with the FIM tokens."""
    for batch in _batches(texts):
        plans = [_plan(text, tokenizer, fim) for text in batch]
        pieces = [item for plan in plans for item in plan if isinstance(item, str)]
        encoded = iter(tokenizer.encode_many(pieces))
        for plan in plans:
            parts = [next(encoded) if isinstance(item, str) else [item] for item in plan]
            yield np.concatenate([np.array(part, dtype=np.int64) for part in parts])


def _plan(text: str, tokenizer: Tokenizer, fim: FimRule | None) -> list[str | int]:
    """What a document is made of: strings to encode, and ids of special tokens."""
    parts = None if fim is None else fim_parts(text, fim)
    if parts is None:
        return [*_pieces(text), tokenizer.document_end_id]
    assert tokenizer.fim_ids is not None, "the tokenizer was trained without FIM tokens"
    begin, hole, end = tokenizer.fim_ids
    prefix, middle, suffix = (_pieces(part) for part in parts)
    return [begin, *prefix, hole, *suffix, end, *middle, tokenizer.document_end_id]


def _pieces(text: str) -> list[str]:
    """A long text cut where its tokens cannot change: at a single space between two ASCII letters.

    The pre-tokenizer ends a word there and begins the next with the space, whatever stands around them.
    """
    pieces, start = [], 0
    while len(text) - start > _PIECE_CHARACTERS:
        cut = text.find(" ", start + _PIECE_CHARACTERS)
        while cut != -1 and not _between_letters(text, cut):
            cut = text.find(" ", cut + 1)
        if cut == -1:
            break
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    return pieces


def _between_letters(text: str, place: int) -> bool:
    around = text[place - 1] + text[place + 1 : place + 2]
    return len(around) == 2 and around.isascii() and around.isalpha()


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
