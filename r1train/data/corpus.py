"""Documents -> token ids in megatron-core's .bin/.idx files, with a .json beside them that says what made them."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from r1train.data.document_rules import NO_RULES, DocumentRules
from r1train.data.encode import encode_documents
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError

ENDINGS = (".bin", ".idx", ".json")
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class CorpusSize:
    """What one corpus holds; tokens include one end-of-sequence token per document."""

    documents: int
    tokens: int


def beside(prefix: Path, ending: str) -> Path:
    """prefix + ending, also where the prefix's name holds a dot."""
    return prefix.with_name(prefix.name + ending)


class CorpusWriter:
    """Writes one corpus under temporary names; finish() renames, leaving without it removes them.

    build: names what a corpus and its held-out documents were made from together, for check_heldout().
    """

    def __init__(self, prefix: Path, tokenizer: Tokenizer, *, build: str | None = None):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._prefix = prefix
        self._tokenizer, self._build = tokenizer, build
        self._partial = [beside(prefix, ending + ".tmp") for ending in ENDINGS]
        self._builder = IndexedDatasetBuilder(str(self._partial[0]), dtype=DType.optimal_dtype(tokenizer.vocab_size))
        self._documents = self._tokens = 0

    def add(self, document: np.ndarray) -> None:
        """document: token ids with the final <|eos|>."""
        self._builder.add_document(document, [len(document)])
        self._documents, self._tokens = self._documents + 1, self._tokens + len(document)

    def append(self, prefix: Path, size: CorpusSize) -> None:
        """Another finished corpus of the same tokenizer, behind what is there."""
        self._builder.add_index(str(prefix))
        self._documents, self._tokens = self._documents + size.documents, self._tokens + size.tokens

    @property
    def size(self) -> CorpusSize:
        return CorpusSize(documents=self._documents, tokens=self._tokens)

    def finish(self) -> CorpusSize:
        self._builder.finalize(str(self._partial[1]))
        made_by = {"tokenizer": self._tokenizer.content_hash, "vocab_size": self._tokenizer.vocab_size}
        build = {} if self._build is None else {"build": self._build}
        self._partial[2].write_text(json.dumps({**made_by, **asdict(self.size), **build}) + "\n", encoding="utf-8")
        for source, ending in zip(self._partial, ENDINGS, strict=True):
            os.replace(source, beside(self._prefix, ending))
        return self.size

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._builder.data_file.close()
        for path in self._partial:
            path.unlink(missing_ok=True)


def write_corpus(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    rules: DocumentRules = NO_RULES,
    build: str | None = None,
) -> CorpusSize:
    """Tokenise `texts` into prefix.bin, .idx and .json, every document ending with the end-of-sequence token.

    All files are written under temporary names and renamed at the end; build: see CorpusWriter. Raises DataError when
    there is no document, and what `texts` raises; then none of them is there.
    """
    with CorpusWriter(prefix, tokenizer, build=build) as writer:
        for batch in _batches(texts):
            for document in encode_documents(batch, tokenizer, rules):
                writer.add(document)
        if writer.size.documents == 0:
            raise DataError(f"{prefix}: the corpus has no documents. Fix: give a source with text")
        return writer.finish()


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch
