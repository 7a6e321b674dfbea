"""Does a corpus fit the tokenizer: asked before training, so that a wrong file never becomes a wrong model."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from r1train.config.prepared import HELDOUT_SUFFIX
from r1train.data.corpus import ENDINGS, beside
from r1train.data.ring import TokenRing
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError

# A corpus without a .json beside it is looked through: all of it up to this many tokens, else evenly spread parts.
_SCANNED_TOKENS = 1 << 26
_SCAN_PARTS = 64


def check_corpus(prefix: Path, tokenizer: Tokenizer) -> None:
    """Raise DataError: files missing, truncated or of each other, another tokenizer, ids beyond its vocabulary.

    A corpus of ours names its tokenizer in prefix.json; of any other (megatron-core's own tools write no such file) the
    token ids are looked at, and the documents' last tokens, which have to be <|eos|>.
    """
    ring = TokenRing(prefix)
    fix = "Fix: tokenise it with the tokenizer in data.dir (prepare stage, or tools/tokenize_corpus.py)"
    made_by = beside(prefix, ".json")
    if made_by.is_file():
        content = _made_by(made_by)
        if content["tokenizer"] != tokenizer.content_hash:
            sizes = f"its vocabulary has {content['vocab_size']} entries, data.dir's {tokenizer.vocab_size}"
            raise DataError(f"{prefix}: made with another tokenizer ({sizes}). {fix}")
        if content["tokens"] != ring.num_tokens:
            what = f"{ring.num_tokens} tokens, but {made_by.name} says {content['tokens']}"
            raise DataError(f"{prefix}: {what}; files of different corpora. {fix}")
        return
    largest = max(int(part.max()) for part in _parts(ring))
    if largest >= tokenizer.vocab_size:
        raise DataError(f"{prefix}: token id {largest}, but the vocabulary has {tokenizer.vocab_size} entries. {fix}")
    if int(ring.read(ring.num_tokens - 1, 1)[0]) != tokenizer.document_end_id:
        raise DataError(f"{prefix}: the last document does not end with <|eos|>, so it is another tokenizer's. {fix}")


def has_heldout(prefix: Path) -> bool:
    """Whether any file of this corpus's held-out documents is there."""
    return any(beside(prefix, HELDOUT_SUFFIX + ending).exists() for ending in ENDINGS)


def check_heldout(prefix: Path, tokenizer: Tokenizer) -> None:
    """check_corpus of the held-out documents of the corpus `prefix`, where there are any: no loss of other text.

    Raises DataError also where the two were not made together: training may then have seen these documents. Files
    without a .json, as of megatron-core's own tools, do not say so.
    """
    heldout = beside(prefix, HELDOUT_SUFFIX)
    if not has_heldout(prefix):
        return
    check_corpus(heldout, tokenizer)
    files = [beside(one, ".json") for one in (prefix, heldout)]
    if not all(path.is_file() for path in files):
        return
    builds = [_made_by(path).get("build") for path in files]
    if builds[0] != builds[1]:
        what = f"held-out documents of another build than {prefix.name}, which may hold the same ones"
        fix = f"delete {heldout}.*, or make both again together (prepare stage, or tools/tokenize_corpus.py)"
        raise DataError(f"{heldout}: {what}. Fix: {fix}")


def _made_by(path: Path) -> dict[str, Any]:
    """What made a corpus. Raises DataError where the file does not say."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    kinds = {"tokenizer": str, "vocab_size": int, "tokens": int}
    if isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        return content
    what = f"does not hold {', '.join(kinds)} of the corpus, so it is truncated or another file"
    fix = "write the corpus again (prepare stage, or tools/tokenize_corpus.py), or remove this file"
    raise DataError(f"{path}: {what}. Fix: {fix}")


def _parts(ring: TokenRing) -> list[np.ndarray]:
    length = min(ring.num_tokens, _SCANNED_TOKENS) // _SCAN_PARTS + 1
    starts = np.linspace(0, max(ring.num_tokens - length, 0), _SCAN_PARTS, dtype=np.int64)
    return [ring.read(int(start), min(length, ring.num_tokens)) for start in starts]
