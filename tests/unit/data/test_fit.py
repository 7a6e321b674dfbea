"""Documents packed whole into windows: nothing lost or cut that fits, little left free, other indexes refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1train.data.corpus import CorpusWriter
from r1train.data.fit import FittedWindows, ensure_fit, fit_corpus, fit_folder, pack_documents, read_fit
from r1train.data.pretrain import PretrainSource
from r1train.data.ring import TokenRing
from r1train.errors import DataError
from r1train.train.batches import dense_micro_batches, masked_micro_batches

EOS = 1
TOOL = Path(__file__).parents[3] / "tools" / "fit_corpus.py"


def write(tokenizer, prefix, lengths):
    """Document d of n tokens: 10, 11, ..., and <|eos|>; values go round below 200."""
    with CorpusWriter(prefix, tokenizer) as writer:
        for length in lengths:
            document = 10 + np.arange(length) % 190
            document[-1] = EOS
            writer.add(document)
        writer.finish()
    return prefix


def pieces_of(lengths, seq_length):
    """(document, first, last) of every piece, window by window."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    pieces, counts = pack_documents(starts[:-1], np.array(lengths), seq_length)
    found = []
    for start, length in pieces.tolist():
        document = int(np.searchsorted(starts, start, side="right")) - 1
        found.append((document, start - int(starts[document]), start - int(starts[document]) + length))
    bounds = np.cumsum([0, *counts])
    return [found[first:last] for first, last in zip(bounds[:-1], bounds[1:], strict=True)]


def test_by_hand():
    """Windows of 4 + 1 tokens. Document 1 has 9 = 2 * 4 + 1: two windows, nothing left; 2 has 11: two and [8, 11)."""
    assert pieces_of([5, 9, 11, 2, 1], 4) == [
        *([(0, 0, 5)], [(1, 0, 5)], [(1, 4, 9)], [(2, 0, 5)], [(2, 4, 9)]),
        *([(2, 8, 11), (3, 0, 2)], [(4, 0, 1)]),
    ]


@given(st.lists(st.integers(1, 70), min_size=1, max_size=60), st.integers(2, 20))
def test_nothing_is_lost_and_nothing_cut_that_fits(lengths, seq_length):
    windows = pieces_of(lengths, seq_length)
    targets = {
        (document, place) for window in windows for document, first, last in window for place in range(first, last)
    }
    assert targets == {(document, place) for document, length in enumerate(lengths) for place in range(length)}
    for document, length in enumerate(lengths):
        parts = sorted((first, last) for window in windows for found, first, last in window if found == document)
        assert parts[0][0] == 0 and parts[-1][1] == length
        # Neighbours share one token: the last target of one is the first input of the next.
        assert [first for first, _ in parts[1:]] == [last - 1 for _, last in parts[:-1]]
        assert length > seq_length + 1 or len(parts) == 1
    sizes = [sum(last - first for _, first, last in window) for window in windows]
    assert max(sizes) <= seq_length + 1
    assert len(sizes) == 1 or sum(sorted(sizes)[:2]) > seq_length + 1


def test_little_stays_free():
    """Log-normal lengths around 400 tokens, at most a window: concatenation would cut one at nearly each window."""
    lengths = np.minimum(np.random.default_rng(3).lognormal(6.0, 1.0, 20_000).astype(np.int64) + 2, 1024)
    _, counts = pack_documents(np.cumsum(lengths) - lengths, lengths, 1024)
    assert counts.sum() == 20_000  # not one is cut
    assert 0 <= 1 - lengths.sum() / (len(counts) * 1025) < 1e-3


@pytest.fixture
def fitted(small_tokenizer, tmp_path):
    """Windows of 8 + 1 tokens; 7 documents of 6 tokens leave 3 free, which the one of 3 tokens fills once."""
    prefix = write(small_tokenizer, tmp_path / "some", [6] * 7 + [3])
    ensure_fit(prefix, 8)
    return prefix


def test_free_space_is_read_but_no_target(fitted):
    source = PretrainSource(fitted.parent, {"some": 1.0}, seq_length=8, seed=9, packing="best_fit")
    windows = source.batch(0, 7)
    filled = torch.tensor([10, 11, 12, 13, 14, EOS, ~10, ~11, ~12])
    both = [[10, 11, EOS, 10, 11, 12, 13, 14, EOS], [10, 11, 12, 13, 14, EOS, 10, 11, EOS]]
    assert sum(torch.equal(window, filled) for window in windows) == 6
    assert sum(window.tolist() in both for window in windows) == 1
    (batch,) = dense_micro_batches(filled[None], 1)
    assert batch.tokens.tolist() == [[10, 11, 12, 13, 14, EOS, 10, 11]]
    assert batch.labels.tolist() == [[11, 12, 13, 14, EOS, 10, 11, 12]]
    assert batch.loss_mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    (isolated,) = masked_micro_batches(filled[None], eos_id=EOS)
    assert isolated.cu_seqlens.tolist() == [0, 6, 8]
    assert isolated.loss_mask.tolist() == batch.loss_mask.tolist()
    assert isolated.padding_mask().tolist() == [[False] * 6 + [True] * 2]


def test_order_of_pieces_changes_with_the_epoch_and_is_pure(small_tokenizer, tmp_path):
    prefix = write(small_tokenizer, tmp_path / "short", range(2, 10))
    fit_corpus(prefix, 64)
    arguments = {"seq_length": 64, "packing": "best_fit"}
    source = PretrainSource(tmp_path, {"short": 1.0}, seed=9, **arguments)
    epochs = [source.sample(epoch).tolist() for epoch in range(8)]
    assert len({tuple(epoch) for epoch in epochs}) == 8
    # 2 + 3 + ... + 9 = 44 tokens are there in each, 21 are filled up.
    assert all(
        sorted(epoch[:44]) == sorted(epochs[0][:44]) and epoch[44:] == [~token for token in epoch[:21]]
        for epoch in epochs
    )
    again = PretrainSource(tmp_path, {"short": 1.0}, seed=9, **arguments)
    assert again.sample(5).tolist() == epochs[5]
    assert PretrainSource(tmp_path, {"short": 1.0}, seed=10, **arguments).sample(5).tolist() != epochs[5]


def test_index_is_kept_and_made_again_for_another_corpus(fitted, small_tokenizer):
    written = (fit_folder(fitted, 8) / "fit.json").stat().st_mtime_ns
    ensure_fit(fitted, 8)
    assert (fit_folder(fitted, 8) / "fit.json").stat().st_mtime_ns == written
    # As many documents and tokens as before, in another order.
    write(small_tokenizer, fitted, [3] + [6] * 7)
    with pytest.raises(DataError, match=r"some.fit8: no index .*, or one of another corpus.*fit_corpus.py"):
        FittedWindows(fitted, 8)
    ensure_fit(fitted, 8)
    windows = FittedWindows(fitted, 8)
    read = [windows.read(index, seed=1, epoch=0, stream="x").tolist() for index in range(windows.count)]
    assert sum(window.count(EOS) for window in read) == 8
    assert sum(window[-1] == EOS for window in read) == 1


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"seq_length": 8}', '{"windows": 7}', b"\xff\xfe", "one more", "text"]
)
def test_a_damaged_index_is_none(fitted, content):
    path = fit_folder(fitted, 8) / "fit.json"
    good = path.read_text()
    changes = {"one more": {"more": 1}, "text": {"windows": "7"}}
    if content in changes:
        content = json.dumps({**json.loads(good), **changes[content]})
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_fit(fitted, 8) is None
    with pytest.raises(DataError, match=r"some.fit8: no index .*, a damaged one, .*fit_corpus.py"):
        FittedWindows(fitted, 8)
    ensure_fit(fitted, 8)
    assert path.read_text() == good and FittedWindows(fitted, 8).count == 7


def test_truncated_index(fitted):
    pieces = fit_folder(fitted, 8) / "pieces.bin"
    os.truncate(pieces, pieces.stat().st_size - 1)
    with pytest.raises(DataError, match=r"pieces.bin: missing, or not the 96 bytes of its index"):
        FittedWindows(fitted, 8)


def test_too_many_documents_for_a_start(fitted, monkeypatch):
    from r1train.data import fit

    monkeypatch.setattr(fit, "_MOST_AT_START", 7)
    ensure_fit(fitted, 8)  # has an index
    with pytest.raises(DataError, match=r"8 documents are too many .*/fit_corpus.py --corpus .*some --seq-length 9 "):
        ensure_fit(fitted, 9)


def test_folder_that_cannot_be_written(fitted, monkeypatch):
    from r1train.data import fit

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit, "_write", full)
    with pytest.raises(DataError, match=r"some.fit9: the index .* cannot be written \(.*No space left on device\)"):
        fit_corpus(fitted, 9)
    assert not list(fitted.parent.glob("*.tmp"))


def test_tool_with_many_processes_gives_the_same_index(small_tokenizer, tmp_path, monkeypatch):
    from r1train.data import fit

    lengths = np.random.default_rng(1).integers(1, 90, 500).tolist()
    one, other = (write(small_tokenizer, tmp_path / name, lengths) for name in ("one", "other"))
    size = fit_corpus(one, 32)
    done = subprocess.run(
        [sys.executable, TOOL, "--corpus", other, "--seq-length", "32", "--workers", "2"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{size.pieces} pieces in {size.windows} windows, {100 * size.padding:.3f} % filled up" in done.stdout
    assert read_fit(other, 32) == size
    for name in ("pieces.bin", "bounds.bin", "fit.json"):
        assert (fit_folder(one, 32) / name).read_bytes() == (fit_folder(other, 32) / name).read_bytes()
    # Blocks of 100 documents: other windows, the same tokens, places of every block.
    monkeypatch.setattr(fit, "_BLOCK", 100)
    blocks = fit_corpus(one, 32)
    assert (blocks.tokens, blocks.pieces) == (size.tokens, size.pieces) and blocks.windows >= size.windows
    windows, ring = FittedWindows(one, 32), TokenRing(one)
    read = [windows.read(index, seed=1, epoch=0, stream="x") for index in range(windows.count)]
    assert sum(int((window >= 0).sum()) for window in read) == size.tokens
    ends = sum(int((window == EOS).sum()) for window in read)
    assert ends == ring.num_documents
