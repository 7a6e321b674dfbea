"""Held-out documents: which they are, that training never sees them, and the windows that perplexity is measured on."""

import dataclasses
from types import SimpleNamespace

import torch

from r1train.config.schema_train import CorpusConfig, DataConfig, TaskConfig
from r1train.data.corpus import write_corpus
from r1train.data.documents import documents
from r1train.data.heldout import Windows, heldout_windows
from r1train.data.ring import TokenRing
from r1train.data.split import in_heldout
from r1train.data.tokenizer import Tokenizer
from r1train.stages import prepare

GSM8K = TaskConfig(name="gsm8k", train=5, heldout=5, cold_start=5, params={}, styles={"steps": 1.0})
DATA = DataConfig(
    name="test",
    dir="",
    tokenizer_vocab_size=320,
    corpora=(CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=1.0),),
    tasks=(GSM8K,),
    worked_examples=0,
    seed=1,
)


def lines(folder, name, tokenizer) -> list[str]:
    ring = TokenRing(folder / "corpus" / name)
    return tokenizer.decode(ring.read(0, ring.num_tokens).tolist()).split("<|eos|>")[:-1]


def test_prepare_splits_every_corpus_by_document(tmp_path):
    data = dataclasses.replace(DATA, dir=str(tmp_path / "data"), heldout_fraction=0.1)
    summary = prepare.run(SimpleNamespace(data=data))
    tokenizer = Tokenizer.load(tmp_path / "data" / "tokenizer")
    everything = list(documents("builtin:gsm8k"))
    left_out = [text for text in everything if in_heldout(text, 0.1)]
    assert 15 <= len(left_out) <= 45  # 300 documents, four standard deviations around 30
    assert lines(tmp_path / "data", "gsm8k_heldout", tokenizer) == left_out
    assert lines(tmp_path / "data", "gsm8k", tokenizer) == [text for text in everything if text not in left_out]
    assert summary["heldout_corpora"]["gsm8k"]["documents"] == len(left_out)
    assert summary["corpora"]["gsm8k"]["documents"] == 300 - len(left_out)


def test_nothing_is_held_out_by_default(tmp_path):
    summary = prepare.run(SimpleNamespace(data=dataclasses.replace(DATA, dir=str(tmp_path / "data"))))
    assert summary["heldout_corpora"] == {} and summary["corpora"]["gsm8k"]["documents"] == 300
    folder = tmp_path / "data" / "corpus"
    assert heldout_windows(folder, "gsm8k", seq_length=8, max_tokens=100, pad_id=2) is None


def test_windows_predict_every_token_but_the_first_once(small_tokenizer, tmp_path):
    texts = ["one two", "three", "four five six"]
    write_corpus(texts, small_tokenizer, tmp_path / "x_heldout")
    ids = [token for text in texts for token in (*small_tokenizer.encode(text), small_tokenizer.eos_id)]
    windows = heldout_windows(tmp_path, "x", seq_length=4, max_tokens=10_000, pad_id=small_tokenizer.pad_id)
    assert windows.tokens.shape == (-(-(len(ids) - 1) // 4), 5)
    counted = windows.mask.bool()
    assert windows.tokens[:, 1:][counted].tolist() == ids[1:]
    assert windows.tokens[:, :-1][counted].tolist() == ids[:-1]
    assert set(windows.tokens[:, 1:][~counted].tolist()) <= {small_tokenizer.pad_id}
    few = heldout_windows(tmp_path, "x", seq_length=4, max_tokens=6, pad_id=small_tokenizer.pad_id)
    assert few.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert few.tokens[:, 1:][few.mask.bool()].tolist() == ids[1:7]


def test_padding_windows_count_nothing():
    windows = Windows(torch.tensor([[5, 6, 7]]), torch.ones(1, 2))
    padded = windows.padded(4)
    assert padded.tokens.tolist() == [[5, 6, 7]] * 4 and padded.mask.tolist() == [[1, 1]] + [[0, 0]] * 3
    assert windows.padded(1).tokens.shape == (1, 3)
