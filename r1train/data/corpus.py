"""Documents -> token ids in megatron-core's .bin/.idx files."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError

_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class CorpusSize:
    """What one corpus holds; tokens include one end-of-sequence token per document."""

    documents: int
    tokens: int


def write_corpus(texts: Iterable[str], tokenizer: Tokenizer, prefix: Path) -> CorpusSize:
    """Tokenise `texts` into prefix.bin and prefix.idx, every document ending with the end-of-sequence token.

    Both files are written under temporary names and renamed at the end. Raises DataError when there is no document,
    and what `texts` raises; then neither file is there.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    targets = [prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx")]
    partial = [path.with_name(path.name + ".tmp") for path in targets]
    builder = IndexedDatasetBuilder(str(partial[0]), dtype=DType.optimal_dtype(tokenizer.vocab_size))
    try:
        size = _add_documents(builder, texts, tokenizer)
        if size.documents == 0:
            raise DataError(f"{prefix}: the corpus has no documents. Fix: give a source with text")
        builder.finalize(str(partial[1]))
        for source, target in zip(partial, targets, strict=True):
            os.replace(source, target)
    finally:
        builder.data_file.close()
        for path in partial:
            path.unlink(missing_ok=True)
    return size


def _add_documents(builder: IndexedDatasetBuilder, texts: Iterable[str], tokenizer: Tokenizer) -> CorpusSize:
    count, tokens = 0, 0
    for batch in _batches(texts):
        for ids in tokenizer.encode_many(batch):
            document = np.array([*ids, tokenizer.eos_id])
            builder.add_document(document, [len(document)])
            count, tokens = count + 1, tokens + len(document)
    return CorpusSize(documents=count, tokens=tokens)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch
