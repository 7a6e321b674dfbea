"""Chat format in tokens: a question in the tokenizer's frame, the response, the token that ends it; loss on these two.

With a tokenizer that was trained here: <|bos|><|user|>{question}<|assistant|>{response}<|eos|>. With another model's:
its own chat template (data/hf_tokenizer.py).
"""

from dataclasses import dataclass, field

import numpy as np

from r1train.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """One sequence, token by token.

    tokens: int64 [n]. trained: float32 [n], 1 where this token is a target of the loss. extras: float32 [n] each,
    values of this token as a target (its advantage, its logprob ...).
    """

    id: str
    tokens: np.ndarray
    trained: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)


def prompt_tokens(tokenizer: Tokenizer, question: str) -> list[int]:
    """Everything before the response. Spellings of special tokens in the question stay plain text."""
    frame = tokenizer.chat
    return [*frame.before, *tokenizer.encode(frame.joined(question)), *frame.after]


def response_tokens(tokenizer: Tokenizer, response: str) -> list[int]:
    """A response and the token that ends it. Tags for which there are special tokens become these."""
    return [*tokenizer.encode(response, special=True), tokenizer.eos_id]


def chat_sample(tokenizer: Tokenizer, prompt: str, response: str, *, id: str) -> Sample:
    """Prompt and response as one training sample."""
    before, after = prompt_tokens(tokenizer, prompt), response_tokens(tokenizer, response)
    trained = np.zeros(len(before) + len(after), dtype=np.float32)
    trained[len(before) :] = 1
    return Sample(id=id, tokens=np.array(before + after, dtype=np.int64), trained=trained)
