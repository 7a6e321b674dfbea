"""The tokens of one corpus in megatron-core's .bin/.idx files, checked when they are opened."""

import struct
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from r1train.data.corpus import beside
from r1train.errors import DataError

_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_INDEX_HEADER = struct.Struct("<9sQBQQ")  # magic, version, type of a token, sequences, documents + 1
_TOKEN_TYPES = {DType[name].value for name in ("uint8", "int8", "int16", "int32", "int64", "uint16")}


class TokenRing:
    """The tokens of one corpus, documents one after the other, last joined to first."""

    def __init__(self, prefix: Path):
        """Raises DataError when prefix.bin or prefix.idx is missing, holds nothing, or does not fit the other."""
        fix = "Fix: run the prepare stage, or tools/tokenize_corpus.py"
        data, index = beside(prefix, ".bin"), beside(prefix, ".idx")
        for path in (data, index):
            if not path.is_file() or path.stat().st_size == 0:
                raise DataError(f"{path}: missing or empty. {fix}")
        self.name = prefix.name
        self._data = _opened(prefix, fix)
        self.num_documents = len(self._data)
        self.num_tokens = int(self._data.sequence_lengths.sum())
        expected, found = self.num_tokens * np.dtype(self._data.index.dtype).itemsize, data.stat().st_size
        if found != expected:
            what = f"{found} bytes, but {index.name} describes {expected}; truncated, or of another corpus"
            raise DataError(f"{data}: {what}. {fix}")

    def documents(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Places (for read()) and lengths of documents [first, last) in tokens, int64."""
        index = self._data.index
        starts = index.sequence_pointers[first:last] // np.dtype(index.dtype).itemsize
        return starts, index.sequence_lengths[first:last].astype(np.int64)

    def some_lengths(self, most: int) -> np.ndarray:
        """Lengths of up to `most` documents, evenly spread, int64."""
        return self._data.index.sequence_lengths[:: -(-self.num_documents // most)].astype(np.int64)

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` tokens, int64, from position `start` on, around the ring."""
        pieces = []
        while count:
            start %= self.num_tokens
            taken = min(count, self.num_tokens - start)
            index = self._data.index
            offset = start * np.dtype(index.dtype).itemsize
            pieces.append(self._data.bin_reader.read(dtype=index.dtype, count=taken, offset=offset))
            start, count = start + taken, count - taken
        return np.concatenate(pieces).astype(np.int64)


def _opened(prefix: Path, fix: str) -> IndexedDataset:
    """megatron-core's reader; DataError for an index that it cannot read.

    Looked at before it is opened: a reader that fails half-way prints a second error when it is collected.
    """
    index = beside(prefix, ".idx")
    with open(index, "rb") as file:
        header = file.read(_INDEX_HEADER.size)
    if len(header) == _INDEX_HEADER.size:
        magic, version, code, sequences, documents = _INDEX_HEADER.unpack(header)
        # Behind the header: int32 length and int64 place of every sequence, int64 first sequence of every document.
        size = _INDEX_HEADER.size + 12 * sequences + 8 * documents
        is_index = (magic, version) == (_INDEX_MAGIC, 1) and code in _TOKEN_TYPES and sequences > 0
        if is_index and index.stat().st_size == size:
            return IndexedDataset(str(prefix))
    raise DataError(f"{index}: not an index of megatron-core, or truncated. {fix}")
