"""Training or held-out: decided per document by a hash of its text, the same on every machine and in every order."""

import hashlib


def document_draw(text: str, stream: str) -> float:
    """A number in [0, 1) that depends on nothing but the text and the name of the use."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=stream.encode()[:16]).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def in_heldout(text: str, share: float) -> bool:
    """Whether this document belongs to the held-out part when that takes `share` of all documents.

    Equal texts fall on the same side, and a larger share only adds documents. With share 0 nothing is held out.
    """
    return document_draw(text, "heldout") < share
