"""Loaders give the source's batches, whatever is asked for; corpora that do not fit are refused before training."""

import gc
import importlib.util
import json
import shutil
import struct
import sys

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from r1train.data import dali
from r1train.data.corpus_check import check_corpus
from r1train.data.dali import open_loader
from r1train.data.documents import documents
from r1train.data.loader import Reader
from r1train.data.pretrain import PretrainSource
from r1train.data.tokenizer import Tokenizer, save_tokenizer, train_tokenizer
from r1train.errors import DataError, EnvironmentProblem
from r1train.train.batches import dense_micro_batches, masked_micro_batches

CPU = torch.device("cpu")
HAS_DALI = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="nvidia-dali is not installed")


@pytest.fixture
def source(folder):
    return PretrainSource(folder, {"small": 1.0, "large": 3.0}, seq_length=16, seed=9, packing="concatenate")


@pytest.mark.parametrize("kind", ["torch", pytest.param("dali", marks=needs_dali)])
def test_batches_are_the_sources(source, kind):
    """Steps in order, a batch that grows, a jump back as after a resume, and a smaller batch."""
    with open_loader(kind, Reader(source, 1, 2), CPU, ahead=3) as loader:
        for consumed, count in ((0, 8), (8, 8), (16, 8), (24, 12), (36, 12), (8, 8), (16, 4), (20, 4), (1000, 40)):
            found = loader.batch(consumed, count)
            assert torch.equal(found, source.batch(consumed, count, dp_rank=1, dp_size=2))
            assert found.dtype == torch.int64
        assert loader.waited_s > 0.0


def test_reads_ahead_what_follows(source):
    asked = []

    class Recording(Reader):
        def read(self, request):
            asked.append((request.consumed, request.count))
            return super().read(request)

    with open_loader("torch", Recording(source, 0, 1), CPU, ahead=2) as loader:
        loader.batch(0, 4)
        loader.batch(4, 4)
        loader._thread.submit(lambda: None).result()  # the queue of reads is empty
    assert asked == [(0, 4), (4, 4), (8, 4), (12, 4)]


def test_an_error_of_the_reader_reaches_the_step(source):
    class Broken(Reader):
        def read(self, request):
            raise DataError("gone")

    with open_loader("torch", Broken(source, 0, 1), CPU) as loader, pytest.raises(DataError, match="gone"):
        loader.batch(0, 4)


def test_missing_dali_is_one_clear_error(source, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(dali.importlib, "import_module", missing)
    with pytest.raises(EnvironmentProblem, match=r"data.loader = dali, .*pip install 'r1train\[gpu\]'"):
        open_loader("dali", Reader(source, 0, 1), CPU)


def copied(folder, tmp_path, name="small"):
    for ending in (".bin", ".idx", ".json"):
        shutil.copy(folder / (name + ending), tmp_path / ("c" + ending))
    return tmp_path / "c"


def test_truncated_files(folder, tmp_path, small_tokenizer, monkeypatch):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    prefix = copied(folder, tmp_path)
    check_corpus(prefix, small_tokenizer)
    data, index = (tmp_path / "c.bin").read_bytes(), (tmp_path / "c.idx").read_bytes()
    (tmp_path / "c.bin").write_bytes(data[:-2])
    with pytest.raises(DataError, match=rf"c.bin: {len(data) - 2} bytes, but c.idx describes {len(data)}; truncated"):
        check_corpus(prefix, small_tokenizer)
    (tmp_path / "c.bin").write_bytes(data)
    for broken in (
        index[: len(index) // 2],
        index[:12],
        index[:-1],
        index[:40],
        index + b"\0",
        b"no index at all",
        index[:17] + b"\x06" + index[18:],  # float64
        index[:17] + b"\x2a" + index[18:],  # no type
        index[:18] + struct.pack("<QQ", 0, 1) + bytes(8),  # no sequence
        index[:9] + struct.pack("<Q", 7) + index[17:],
    ):
        (tmp_path / "c.idx").write_bytes(broken)
        with pytest.raises(DataError, match="c.idx: not an index of megatron-core, or truncated"):
            check_corpus(prefix, small_tokenizer)
    gc.collect()
    assert not unraisable  # no second error from a half-open reader


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", "null", "3", '{"tokenizer": "x", "vocab_size": 300}', b"\xff\xfe"]
)
def test_broken_file_beside_a_corpus(folder, tmp_path, small_tokenizer, content):
    prefix = copied(folder, tmp_path)
    (tmp_path / "c.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"c.json: does not hold tokenizer, vocab_size, tokens of the corpus.*\. Fix: "):
        check_corpus(prefix, small_tokenizer)


def test_another_tokenizers_corpus(folder, tmp_path, small_tokenizer):
    other = tmp_path / "other"
    save_tokenizer(train_tokenizer(documents("builtin:gsm8k"), 310), other)
    with pytest.raises(DataError, match=r"another tokenizer \(its vocabulary has 300 entries, data.dir's 310\)"):
        check_corpus(folder / "small", Tokenizer.load(other))
    prefix = copied(folder, tmp_path)
    content = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**content, "tokens": 3}))
    with pytest.raises(DataError, match="files of different corpora"):
        check_corpus(prefix, small_tokenizer)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([5, 300, 1], "token id 300, but the vocabulary has 300 entries"), ([5, 6], "does not end with <|eos|>")],
)
def test_foreign_corpora_are_looked_through(tmp_path, small_tokenizer, tokens, message):
    """megatron-core's own tools write no .json beside the corpus."""
    builder = IndexedDatasetBuilder(str(tmp_path / "f.bin"), dtype=np.int32)
    builder.add_document(np.array([7, 8, 1]), [3])
    builder.add_document(np.array(tokens), [len(tokens)])
    builder.finalize(str(tmp_path / "f.idx"))
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        check_corpus(tmp_path / "f", small_tokenizer)


def test_masked_micro_batches_by_hand():
    """Tokens 5 6 <eos> 7 <eos> 8, labels one further: documents 5 6 1, 7 1 and the beginning of 8."""
    (batch,) = masked_micro_batches(torch.tensor([[5, 6, 1, 7, 1, 8, 9]]), eos_id=1)
    assert batch.tokens.tolist() == [[5, 6, 1, 7, 1, 8]]
    assert batch.labels.tolist() == [[6, 1, 7, 1, 8, 9]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.loss_mask.tolist() == [[1.0, 1.0, 0.0, 1.0, 0.0, 1.0]]
    (ends,) = masked_micro_batches(torch.tensor([[5, 1, 6]]), eos_id=1)
    assert (ends.cu_seqlens.tolist(), ends.loss_mask.tolist()) == ([0, 2], [[1.0, 0.0]])


def test_dense_micro_batches_see_across_documents():
    (batch,) = dense_micro_batches(torch.tensor([[5, 1, 6], [1, 1, 7]]), 2)
    assert batch.cu_seqlens is None
    assert batch.positions.tolist() == [[0, 1], [0, 1]]
    assert batch.loss_mask.tolist() == [[1.0, 1.0], [1.0, 1.0]]
