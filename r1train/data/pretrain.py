"""Pre-training samples: windows of blended corpora, sample i a pure function of (seed, i).

data/blend.py names the corpus of each sample. Within a corpus an epoch cuts the concatenated documents, as a ring with
a random start, into windows of seq_length + 1 tokens (neighbours share one token) and visits them in random order; each
token is a target once, but for the remainder that fills no window. Attention crosses documents (V3 report section 4.1)
unless data.mask_across_documents is set.
megatron-core's GPTDataset is not used: it needs the number of samples beforehand and writes index caches.
"""

import struct
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from r1train.data.blend import blend
from r1train.data.corpus import beside
from r1train.data.order import generator, shuffled
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


class PretrainSource:
    """Blended windows. State of training: the number of samples consumed, nothing else."""

    def __init__(self, folder: str | Path, weights: dict[str, float], *, seq_length: int, seed: int):
        """folder: where <name>.bin/.idx lie; weights: share of samples per corpus name, 0 leaves it out.

        Raises DataError: no corpus, a weight below 0, files missing, a corpus shorter than one window.
        """
        weights = {name: weight for name, weight in weights.items() if weight != 0}
        if not weights or min(weights.values()) < 0:
            raise DataError(f"corpora {weights}: weights below 0, or none above. Fix: data.corpora")
        self.seq_length = seq_length
        self._seed = seed
        self._rings = [TokenRing(Path(folder) / name) for name in weights]
        self._blend = blend(list(weights.values()))
        for ring in self._rings:
            if ring.num_tokens <= seq_length:
                raise DataError(
                    f"corpus {ring.name!r}: {ring.num_tokens} tokens do not fill one sequence of {seq_length}. "
                    "Fix: give more text or a smaller stage.seq_length"
                )

    def sample(self, index: int) -> np.ndarray:
        """Sample `index` (0, 1, ... without end): int64 [S + 1]."""
        corpus, nth = self._blend.at(index)
        ring = self._rings[corpus]
        windows = ring.num_tokens // self.seq_length
        epoch, place = divmod(nth, windows)
        stream = f"pretrain/{ring.name}"
        window = shuffled(place, windows, seed=self._seed, epoch=epoch, stream=stream)
        start = int(generator(seed=self._seed, epoch=epoch, stream=stream + "/start").integers(ring.num_tokens))
        return ring.read(start + window * self.seq_length, self.seq_length + 1)

    def batch(self, consumed: int, count: int, *, dp_rank: int = 0, dp_size: int = 1) -> torch.Tensor:
        """This rank's share of samples [consumed, consumed + count): int64 [count / dp_size, S + 1].

        Rank r takes the r-th contiguous part; count is a multiple of dp_size. The next starts at consumed + count.
        """
        assert count % dp_size == 0, f"{count} samples over {dp_size} ranks"
        share = count // dp_size
        first = consumed + dp_rank * share
        return torch.from_numpy(np.stack([self.sample(index) for index in range(first, first + share)]))
