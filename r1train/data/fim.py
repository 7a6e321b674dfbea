"""Fill in the middle, PSM order, per document and before packing (V3 report section 4.1; Bavarian et al. 2022).

A chosen document becomes <|fim_begin|> prefix <|fim_hole|> suffix <|fim_end|> middle <|eos|>: cut at two random
characters, so that every token of it still is a target once.
"""

import hashlib
from dataclasses import dataclass

from r1train.data.split import document_draw


@dataclass(frozen=True)
class FimRule:
    """rate: share of documents that are cut (V3: 0.1). seed: other cuts and other documents."""

    rate: float
    seed: int


def fim_parts(text: str, rule: FimRule) -> tuple[str, str, str] | None:
    """(prefix, middle, suffix) of a document that is chosen, else None. Their concatenation is the text.

    Both cuts are uniform over the positions between characters, ends included, so parts may be empty. A pure function
    of text and rule: the order of documents and the number of workers do not matter.
    """
    if document_draw(text, f"fim/{rule.seed}") >= rule.rate:
        return None
    digest = hashlib.blake2b(text.encode(), digest_size=16, person=f"cut/{rule.seed}".encode()[:16]).digest()
    places = len(text) + 1
    first, second = sorted(int.from_bytes(part, "little") % places for part in (digest[:8], digest[8:]))
    return text[:first], text[first:second], text[second:]
