"""The corpus builtin:passkey: documents that are a passkey prompt in chat form and its answer, and nothing else.

A model that is trained on them knows the task; what the evaluation then shows is over which lengths its attention
works, not that retrieval emerges. Keys are never the evaluation's (data/passkey_text.py).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from r1train.config.schema_train import PasskeyDocuments
from r1train.data.chat import chat_sample
from r1train.data.chat_corpus import end_document
from r1train.data.corpus import CorpusSize, CorpusWriter
from r1train.data.order import generator
from r1train.data.passkey_text import Passkey, draw_key, passkey_text
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError

PASSKEY = "builtin:passkey"
# For the tokenizer: enough to make words of the filler's words, little beside the text of the other corpora.
_SHOWN, _SHOWN_SENTENCES = 200, 20
# Share of the documents whose key stands before all filler, and after all: in long documents chance makes too few.
_AT_EACH_END = 0.1


def shown_texts(passkey: PasskeyDocuments, *, seed: int, name: str) -> Iterator[str]:
    """Prompts' texts that a tokenizer in training sees; they need none themselves."""
    for number in range(min(_SHOWN, passkey.documents)):
        random = generator(seed=seed, epoch=number, stream=f"passkey/{name}/shown")
        key = draw_key(random, passkey.digits, evaluated=False)
        yield passkey_text(key, before=_SHOWN_SENTENCES // 2, after=_SHOWN_SENTENCES // 2)


def passkey_documents(passkey: PasskeyDocuments, tokenizer: Tokenizer, *, seed: int, name: str) -> Iterator[np.ndarray]:
    """int64 [n] per document, n <= max_tokens: prompt, key, <|eos|>. Document i depends on seed, name and i only.

    Keys are uniform. A length is the larger of two uniform ones, met up to a sentence: packing cuts a document the more
    often the longer it is, so that keys far from their question would be rare. Depths are 0 and 1 in a tenth of the
    documents each, else uniform. Raises DataError when max_tokens does not hold a prompt without filler.
    """
    for number in range(passkey.documents):
        random = generator(seed=seed, epoch=number, stream=f"passkey/{name}")
        key = draw_key(random, passkey.digits, evaluated=False)
        depth = min(1.0, max(0.0, (float(random.random()) - _AT_EACH_END) / (1 - 2 * _AT_EACH_END)))
        prompt = Passkey(tokenizer, key, depth, chat=True)
        # The answer's tokens do not depend on the filler.
        least = len(_document(prompt, 0))
        if least > passkey.max_tokens:
            what = f"{passkey.max_tokens} tokens do not hold key, question and answer"
            raise DataError(f"corpus {name!r}: passkey.max_tokens: {what}. Fix: {least} or more")
        wanted = int(random.integers(least, passkey.max_tokens + 1, size=2).max())
        sentences = prompt.longest(wanted - least + len(prompt.tokens(0)))
        assert sentences is not None, "the wanted length holds the prompt without filler"
        yield _document(prompt, sentences)


def write_passkey_corpus(passkey: PasskeyDocuments, tokenizer: Tokenizer, prefix: Path, *, seed: int) -> CorpusSize:
    """The documents in prefix.bin, .idx and .json; prefix's name is the corpus's.

    Raises DataError as passkey_documents does; then none of the files is there.
    """
    with CorpusWriter(prefix, tokenizer) as writer:
        for document in passkey_documents(passkey, tokenizer, seed=seed, name=prefix.name):
            writer.add(document)
        return writer.finish()


def _document(prompt: Passkey, sentences: int) -> np.ndarray:
    tokens = chat_sample(prompt.tokenizer, prompt.text(sentences), prompt.key, id="").tokens
    return end_document(tokens, prompt.tokenizer)
