"""The corpus builtin:chats: cold-start examples as documents of pre-training, as the web's text holds conversations.

A base model that has seen a few of them answers a question in the response format now and then, which is what RL
without a cold start (R1-Zero, R1 section 2) has to begin with.
"""

from pathlib import Path

import numpy as np

from r1train.data.chat import chat_sample
from r1train.data.corpus import CorpusSize, CorpusWriter
from r1train.data.tokenizer import Tokenizer

CHATS = "builtin:chats"


def write_chat_corpus(rows: list[dict], tokenizer: Tokenizer, prefix: Path) -> CorpusSize:
    """One document per row {id, prompt, response}, framed as the chat of fine-tuning; prefix.bin, .idx and .json."""
    with CorpusWriter(prefix, tokenizer) as writer:
        for row in rows:
            tokens = chat_sample(tokenizer, row["prompt"], row["response"], id=row["id"]).tokens
            writer.add(end_document(tokens, tokenizer))
        return writer.finish()


def end_document(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Of another model's tokenizer the end of a turn may not be the end of a document, which is then added."""
    ends = [] if tokenizer.document_end_id == tokenizer.eos_id else [tokenizer.document_end_id]
    return np.concatenate([tokens, np.array(ends, dtype=np.int64)])
