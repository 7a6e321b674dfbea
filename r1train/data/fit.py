"""Whole documents in windows, by best fit: V3's "document packing method for data integrity" (report section 4.1).

It is that of Ding et al. 2024, "Fewer Truncations Improve Language Modeling". A document of up to S + 1 tokens lies in
one window. Of a longer one each S tokens are a window (neighbours share one token), and what is left over is packed
like a short document. Documents are packed 2**18 at a time, so that any number of them takes little memory; the space
that stays free is 0.003 % of the windows at 4,096 tokens and documents of 1,100 in the mean (log-normal), more where
few short documents are there to fill it. Which pieces lie in a window stands in an index beside the corpus,
<corpus>.fit<S>: 12 bytes a piece and 8 a window, read through memory maps.
"""

import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from r1train.data.corpus import beside
from r1train.data.order import generator
from r1train.data.packing import best_fit_bins
from r1train.data.ring import TokenRing
from r1train.errors import DataError
from r1train.log.lock import hold

_log = logging.getLogger(__name__)
PIECE = np.dtype([("start", "<i8"), ("length", "<i4")])  # place in the .bin and length, in tokens
_BLOCK = 1 << 18
# About 1.5 us a document: half a minute.
_MOST_AT_START = 20_000_000
_LOCK_WAIT_S = 300.0
_SAMPLED_LENGTHS = 1 << 16
_SIZES, _PIECES, _BOUNDS = "fit.json", "pieces.bin", "bounds.bin"


@dataclass(frozen=True)
class FitSize:
    """What an index holds. tokens: of its pieces; lengths: hash of the corpus that it was made of."""

    seq_length: int
    windows: int
    pieces: int
    tokens: int
    lengths: str

    @property
    def padding(self) -> float:
        """Share of the windows that no document fills."""
        return 1 - self.tokens / (self.windows * (self.seq_length + 1))


def fit_folder(prefix: Path, seq_length: int) -> Path:
    """Where the index of the corpus <prefix>.bin for windows of seq_length + 1 tokens lies."""
    return beside(prefix, f".fit{seq_length}")


def read_fit(prefix: Path, seq_length: int) -> FitSize | None:
    """What the finished index of this corpus holds; None: there is none, a damaged one, or one of another corpus."""
    return _read(fit_folder(prefix, seq_length), TokenRing(prefix))


def ensure_fit(prefix: Path, seq_length: int) -> None:
    """Write the index of a corpus where it is missing; another process that writes it is waited for.

    Raises DataError where that would keep a job's other processes waiting for minutes, and what fit_corpus() raises.
    """
    ring, folder = TokenRing(prefix), fit_folder(prefix, seq_length)
    size = _read(folder, ring)
    if size is None:
        if ring.num_documents > _MOST_AT_START:
            what = f"{ring.num_documents} documents are too many to pack when a job starts"
            fix = f"python tools/fit_corpus.py --corpus {prefix} --seq-length {seq_length} --workers N, once"
            raise DataError(f"{prefix}: {what}. Fix: {fix}")
        with hold(beside(folder, ".lock"), wait_s=_LOCK_WAIT_S):
            size = _read(folder, ring) or fit_corpus(prefix, seq_length)
    what = "%s: documents packed into %d windows of %d tokens, %.3f %% of them filled up"
    _log.info(what, prefix.name, size.windows, seq_length, 100 * size.padding)


def fit_corpus(prefix: Path, seq_length: int, *, workers: int = 1) -> FitSize:
    """Write the index of a corpus, in place of one that is there. A function of the documents' lengths alone.

    workers: processes; with 1 it is this one. Raises DataError where the corpus is damaged or the folder read-only.
    """
    ring, folder = TokenRing(prefix), fit_folder(prefix, seq_length)
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        size = _write(ring, prefix, partial, seq_length, workers)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        fix = f"make room or the folder writable, or let its owner run tools/fit_corpus.py --corpus {prefix}"
        raise DataError(f"{folder}: the index of packed documents cannot be written ({error}). Fix: {fix}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return size


class FittedWindows:
    """Windows of a corpus that has an index. Pieces of a window stand in another order in each epoch.

    Space that stays free holds the window's own first tokens, complemented: to the router they look like text.
    """

    def __init__(self, prefix: Path, seq_length: int):
        """Raises DataError: no index there, one of another corpus, or a damaged one."""
        ring, folder = TokenRing(prefix), fit_folder(prefix, seq_length)
        size = _read(folder, ring)
        fix = "Fix: tools/fit_corpus.py writes it"
        if size is None:
            raise DataError(f"{folder}: no index of packed documents, a damaged one, or one of another corpus. {fix}")
        expected = {_PIECES: size.pieces * PIECE.itemsize, _BOUNDS: (size.windows + 1) * 8}
        for name, length in expected.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != length:
                raise DataError(f"{folder / name}: missing, or not the {length} bytes of its index. {fix}")
        self.count, self._length, self._ring = size.windows, seq_length + 1, ring
        self._pieces = np.memmap(folder / _PIECES, PIECE, mode="r")
        self._bounds = np.memmap(folder / _BOUNDS, np.int64, mode="r")

    def read(self, window: int, *, seed: int, epoch: int, stream: str) -> np.ndarray:
        pieces = self._pieces[self._bounds[window] : self._bounds[window + 1]]
        order = generator(seed=seed, epoch=epoch, stream=f"{stream}/{window}").permutation(len(pieces))
        tokens = np.concatenate([self._ring.read(int(start), int(length)) for start, length in pieces[order]])
        return np.concatenate([tokens, ~np.resize(tokens, self._length - len(tokens))])


def _read(folder: Path, ring: TokenRing) -> FitSize | None:
    if not (folder / _SIZES).is_file():
        return None
    try:
        content = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
    except ValueError:
        return None
    kinds = {field.name: field.type for field in fields(FitSize)}
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != kinds:
        return None
    size = FitSize(**content)
    return size if size.lengths == _hash(ring) else None


def _write(ring: TokenRing, prefix: Path, folder: Path, seq_length: int, workers: int) -> FitSize:
    """All blocks in order; a block's places begin at its first document."""
    windows = pieces = tokens = 0
    np.zeros(1, np.int64).tofile(folder / _BOUNDS)
    with open(folder / _BOUNDS, "ab") as bounds_file, open(folder / _PIECES, "wb") as pieces_file:
        for found, counts in _blocks(ring, prefix, seq_length, workers):
            (pieces + np.cumsum(counts)).tofile(bounds_file)
            found.tofile(pieces_file)
            windows, pieces, tokens = windows + len(counts), pieces + len(found), tokens + int(found["length"].sum())
    size = FitSize(seq_length, windows, pieces, tokens, _hash(ring))
    (folder / _SIZES).write_text(json.dumps(asdict(size)) + "\n", encoding="utf-8")
    return size


def _blocks(ring: TokenRing, prefix: Path, seq_length: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """PIECE [n] window by window and int64 [w], how many of them each window has, of 2**18 documents at a time."""
    firsts = range(0, ring.num_documents, _BLOCK)
    if workers == 1:
        yield from (pack_documents(*ring.documents(first, first + _BLOCK), seq_length) for first in firsts)
        return
    # Workers that read the corpus themselves, in processes without this one's threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
        spans = [(first, first + _BLOCK) for first in firsts]
        yield from pool.map(_block, itertools.repeat(prefix), spans, itertools.repeat(seq_length))


def _block(prefix: Path, span: tuple[int, int], seq_length: int) -> tuple[np.ndarray, np.ndarray]:
    return pack_documents(*_worker_ring(prefix).documents(*span), seq_length)


@functools.lru_cache(maxsize=1)
def _worker_ring(prefix: Path) -> TokenRing:
    """A worker's, opened for its first block: that adds up the lengths of all documents."""
    return TokenRing(prefix)


def pack_documents(starts: np.ndarray, lengths: np.ndarray, seq_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents by their places and lengths, int64 [d]: PIECE [n] window by window, int64 [w] how many each has."""
    # Every S tokens with the one after them, which is the last target: a document of k * S + 1 tokens is k windows.
    full = (lengths - 1) // seq_length
    left = lengths - full * seq_length
    packed = np.flatnonzero((left > 1) | (full == 0))
    bins = best_fit_bins(left[packed].tolist(), seq_length + 1)
    order = packed[list(itertools.chain.from_iterable(bins))]
    pieces = np.empty(int(full.sum()) + len(order), PIECE)
    whole, rest = pieces[: int(full.sum())], pieces[int(full.sum()) :]
    nth = np.arange(len(whole)) - np.repeat(np.cumsum(full) - full, full)
    whole["start"], whole["length"] = np.repeat(starts, full) + nth * seq_length, seq_length + 1
    rest["start"], rest["length"] = (starts + full * seq_length)[order], left[order]
    return pieces, np.array([1] * len(whole) + [len(one) for one in bins], dtype=np.int64)


def _hash(ring: TokenRing) -> str:
    """Of the numbers of documents and tokens, and of the lengths of up to 65,536 documents evenly spread."""
    content = f"{ring.num_documents} {ring.num_tokens} ".encode() + ring.some_lengths(_SAMPLED_LENGTHS).tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
