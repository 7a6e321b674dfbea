"""Pre-training samples: windows of blended corpora, sample i a pure function of (seed, i).

data/blend.py names the corpus of each sample. Within a corpus an epoch visits all windows in random order. Attention
crosses documents (V3 report section 4.1) unless data.mask_across_documents is set.
megatron-core's GPTDataset is not used: it needs the number of samples beforehand and writes index caches.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from r1train.config.schema_train import Packing
from r1train.data.blend import blend
from r1train.data.fit import FittedWindows
from r1train.data.order import generator, shuffled
from r1train.data.ring import TokenRing
from r1train.errors import DataError


class CorpusWindows(Protocol):
    """One corpus cut into windows of S + 1 tokens. count: windows of an epoch."""

    count: int

    def read(self, window: int, *, seed: int, epoch: int, stream: str) -> np.ndarray:
        """int64 [S + 1]; where a token is negative, ~token is there to be read, but is no target."""


class RunningWindows:
    """Documents concatenated to a ring with a random start, and cut anywhere.

    Neighbours share one token: each token is a target once an epoch, but for the remainder that fills no window.
    """

    def __init__(self, ring: TokenRing, seq_length: int):
        """Raises DataError when the corpus is shorter than one window."""
        if ring.num_tokens <= seq_length:
            raise DataError(
                f"corpus {ring.name!r}: {ring.num_tokens} tokens do not fill one sequence of {seq_length}. "
                "Fix: give more text or a smaller stage.seq_length"
            )
        self.count = ring.num_tokens // seq_length
        self._ring, self._seq_length = ring, seq_length

    def read(self, window: int, *, seed: int, epoch: int, stream: str) -> np.ndarray:
        draws = generator(seed=seed, epoch=epoch, stream=stream + "/start")
        start = int(draws.integers(self._ring.num_tokens))
        return self._ring.read(start + window * self._seq_length, self._seq_length + 1)


class PretrainSource:
    """Blended windows. State of training: the number of samples consumed, nothing else."""

    def __init__(self, folder: str | Path, weights: dict[str, float], *, seq_length: int, seed: int, packing: Packing):
        """folder: where <name>.bin/.idx lie; weights: share of samples per corpus name, 0 leaves it out.

        packing best_fit reads the index that fit_corpus() has left beside each corpus.
        Raises DataError: no corpus, a weight below 0, files missing, a corpus shorter than one window.
        """
        weights = {name: weight for name, weight in weights.items() if weight != 0}
        if not weights or min(weights.values()) < 0:
            raise DataError(f"corpora {weights}: weights below 0, or none above. Fix: data.corpora")
        self.seq_length = seq_length
        self._seed = seed
        self._names = list(weights)
        self._windows = [_cut(Path(folder) / name, seq_length, packing) for name in weights]
        self._blend = blend(list(weights.values()))

    def sample(self, index: int) -> np.ndarray:
        """Sample `index` (0, 1, ... without end): int64 [S + 1]; negative tokens as CorpusWindows says."""
        corpus, nth = self._blend.at(index)
        windows, stream = self._windows[corpus], f"pretrain/{self._names[corpus]}"
        epoch, place = divmod(nth, windows.count)
        window = shuffled(place, windows.count, seed=self._seed, epoch=epoch, stream=stream)
        return windows.read(window, seed=self._seed, epoch=epoch, stream=stream)

    def batch(self, consumed: int, count: int, *, dp_rank: int = 0, dp_size: int = 1) -> torch.Tensor:
        """This rank's share of samples [consumed, consumed + count): int64 [count / dp_size, S + 1].

        Rank r takes the r-th contiguous part; count is a multiple of dp_size. The next starts at consumed + count.
        """
        assert count % dp_size == 0, f"{count} samples over {dp_size} ranks"
        share = count // dp_size
        first = consumed + dp_rank * share
        return torch.from_numpy(np.stack([self.sample(index) for index in range(first, first + share)]))


def _cut(prefix: Path, seq_length: int, packing: Packing) -> CorpusWindows:
    return FittedWindows(prefix, seq_length) if packing == "best_fit" else RunningWindows(TokenRing(prefix), seq_length)
