"""Chat format in tokens: <|bos|><|user|>{question}<|assistant|>{response}<|eos|>, loss on the response and <|eos|>."""

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
    return [tokenizer.bos_id, tokenizer.user_id, *tokenizer.encode(question), tokenizer.assistant_id]


def response_tokens(tokenizer: Tokenizer, response: str) -> list[int]:
    """A response with its think/answer tags as special tokens, and the final <|eos|>."""
    return [*tokenizer.encode(response, special=True), tokenizer.eos_id]


def chat_sample(tokenizer: Tokenizer, prompt: str, response: str, *, id: str) -> Sample:
    """Prompt and response as one training sample."""
    before, after = prompt_tokens(tokenizer, prompt), response_tokens(tokenizer, response)
    trained = np.zeros(len(before) + len(after), dtype=np.float32)
    trained[len(before) :] = 1
    return Sample(id=id, tokens=np.array(before + after, dtype=np.int64), trained=trained)
