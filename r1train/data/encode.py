"""Texts -> the token ids of documents as they stand in a corpus: by their rules, with an end-of-document token."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from r1train.data.document_rules import NO_RULES, DocumentRules
from r1train.data.fim import FimRule, fim_parts
from r1train.data.tokenizer import Tokenizer

# The tokenizers library needs 130 to 360 bytes a token while it encodes, so few characters at a time.
_BATCH_CHARACTERS = 1 << 20
_PIECE_CHARACTERS = 1 << 18
# Before a single space between ASCII letters or digits, before the line break behind a letter or digit, and before the
# comma or full stop behind a Chinese character.
_CUT = re.compile(r"(?<=[A-Za-z0-9])(?= [A-Za-z0-9])|(?<=[^\W_])(?=\n)|(?<=[\u4e00-\u9fff])(?=[\uff0c\u3002])")


def encode_documents(
    texts: Sequence[str], tokenizer: Tokenizer, rules: DocumentRules = NO_RULES
) -> Iterator[np.ndarray]:
    """int64 [n] per text, in order; the last id is document_end_id."""
    for batch in _batches(texts):
        plans = [_plan(text, tokenizer, rules.fim) for text in batch]
        pieces = [item for plan in plans for item in plan if isinstance(item, str)]
        encoded = (ids for few in _batches(pieces) for ids in _encoded(few, tokenizer))
        for text, plan in zip(batch, plans, strict=True):
            parts = [next(encoded) if isinstance(item, str) else np.array([item], dtype=np.int64) for item in plan]
            ids = np.concatenate(parts)
            yield ids if rules.split is None else rules.split.apply(ids, text)


def _encoded(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    return [np.array(ids, dtype=np.int64) for ids in tokenizer.encode_many(texts)]


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
    """A long text cut where its tokens cannot change: where a word or number ends (_CUT).

    Pre-tokenizers end a word there and begin the next one with what follows, whatever stands around them.
    """
    pieces, start = [], 0
    while len(text) - start > _PIECE_CHARACTERS:
        cut = _CUT.search(text, start + _PIECE_CHARACTERS)
        if cut is None:
            break
        pieces.append(text[start : cut.start()])
        start = cut.start()
    pieces.append(text[start:])
    return pieces


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
