"""Held-out documents: which they are, that training never sees them, and the windows that perplexity is measured on."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from r1train.config.schema_train import CorpusConfig, DataConfig, TaskConfig
from r1train.data.corpus import write_corpus
from r1train.data.corpus_check import check_heldout
from r1train.data.documents import documents
from r1train.data.heldout import Windows, heldout_windows
from r1train.data.ring import TokenRing
from r1train.data.split import in_heldout
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError
from r1train.stages import evaluate, prepare, pretrain

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
    folder, tokenizer = tmp_path / "data" / "corpus", Tokenizer.load(tmp_path / "data" / "tokenizer")
    assert heldout_windows(folder, "gsm8k", tokenizer, seq_length=8, max_tokens=100) is None


def test_windows_predict_every_token_but_the_first_once(small_tokenizer, tmp_path):
    texts = ["one two", "three", "four five six"]
    write_corpus(texts, small_tokenizer, tmp_path / "x_heldout")
    ids = [token for text in texts for token in (*small_tokenizer.encode(text), small_tokenizer.eos_id)]
    windows = heldout_windows(tmp_path, "x", small_tokenizer, seq_length=4, max_tokens=10_000)
    assert windows.tokens.shape == (-(-(len(ids) - 1) // 4), 5)
    counted = windows.mask.bool()
    assert windows.tokens[:, 1:][counted].tolist() == ids[1:]
    assert windows.tokens[:, :-1][counted].tolist() == ids[:-1]
    assert set(windows.tokens[:, 1:][~counted].tolist()) <= {small_tokenizer.pad_id}
    few = heldout_windows(tmp_path, "x", small_tokenizer, seq_length=4, max_tokens=6)
    assert few.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert few.tokens[:, 1:][few.mask.bool()].tolist() == ids[1:7]


def test_padding_windows_count_nothing():
    windows = Windows(torch.tensor([[5, 6, 7]]), torch.ones(1, 2))
    padded = windows.padded(4)
    assert padded.tokens.tolist() == [[5, 6, 7]] * 4 and padded.mask.tolist() == [[1, 1]] + [[0, 0]] * 3
    assert windows.padded(1).tokens.shape == (1, 3)


ENDINGS = (".bin", ".idx", ".json")


def truncate(heldout: Path) -> None:
    path = heldout.with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-2])


def of_another_tokenizer(heldout: Path) -> None:
    path = heldout.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer": "other", "vocab_size": 301}))


def of_another_build(heldout: Path) -> None:
    path = heldout.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "build": "second"}))


def of_no_build(heldout: Path) -> None:
    path = heldout.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "build": None}))


def without_index(heldout: Path) -> None:
    heldout.with_suffix(".idx").unlink()


DAMAGES = {
    truncate: "x_heldout.bin: .* truncated",
    of_another_tokenizer: r"x_heldout: made with another tokenizer \(its vocabulary has 301",
    of_another_build: "x_heldout: held-out documents of another build than x, .*delete .*x_heldout",
    of_no_build: "x_heldout: held-out documents of another build than x",
    without_index: "x_heldout.idx: missing",
}


@pytest.fixture
def corpus(small_tokenizer, tmp_path) -> Path:
    """Corpus x with held-out documents, in the data folder tmp_path."""
    for name in ("x", "x_heldout"):
        write_corpus(["one two", "three"], small_tokenizer, tmp_path / "corpus" / name, build="first")
    return tmp_path / "corpus" / "x"


def job(corpus: Path, tokenizer: Tokenizer, *, weight: float = 1.0) -> SimpleNamespace:
    data = SimpleNamespace(
        dir=str(corpus.parents[1]), corpora=[SimpleNamespace(name="x", weight=weight)], packing="concatenate"
    )
    stage = SimpleNamespace(seq_length=4, init_from="none")
    return SimpleNamespace(cfg=SimpleNamespace(data=data, stage=stage), tokenizer=tokenizer)


@pytest.mark.parametrize(("damage", "message"), DAMAGES.items())
def test_damaged_heldout_documents_are_refused_before_the_first_step(corpus, small_tokenizer, damage, message):
    damage(corpus.with_name("x_heldout"))
    with pytest.raises(DataError, match=message):
        pretrain.open_windows(job(corpus, small_tokenizer))
    with pytest.raises(DataError, match=message):
        heldout_windows(corpus.parent, "x", small_tokenizer, seq_length=4, max_tokens=10)


@pytest.mark.parametrize(("damage", "message"), DAMAGES.items())
def test_and_before_an_evaluation_loads_or_generates_anything(corpus, small_tokenizer, monkeypatch, damage, message):
    class LoadingError(Exception):
        pass

    def loading(*_):
        raise LoadingError

    running = job(corpus, small_tokenizer)
    monkeypatch.setattr(evaluate, "session", lambda _: contextlib.nullcontext(running))
    monkeypatch.setattr(evaluate, "load_suites", loading)
    with pytest.raises(LoadingError):
        evaluate.run(running.cfg)
    damage(corpus.with_name("x_heldout"))
    with pytest.raises(DataError, match=message):
        evaluate.run(running.cfg)
    unused = job(corpus, small_tokenizer, weight=0.0)
    monkeypatch.setattr(evaluate, "session", lambda _: contextlib.nullcontext(unused))
    with pytest.raises(LoadingError):
        evaluate.run(unused.cfg)


def test_heldout_documents_that_do_not_name_their_build_stay_readable(corpus, small_tokenizer):
    """Files of earlier versions on both sides, or of megatron-core's own tools, which write no .json, on one."""
    check_heldout(corpus, small_tokenizer)
    written = {name: corpus.with_name(f"{name}.json").read_text() for name in ("x", "x_heldout")}
    for name, text in written.items():
        path = corpus.with_name(f"{name}.json")
        path.unlink()
        check_heldout(corpus, small_tokenizer)
        path.write_text(text)
    for name, text in written.items():
        fields = {key: value for key, value in json.loads(text).items() if key != "build"}
        corpus.with_name(f"{name}.json").write_text(json.dumps(fields))
    check_heldout(corpus, small_tokenizer)
    for ending in ENDINGS:
        corpus.with_name(f"x_heldout{ending}").unlink()
    check_heldout(corpus, small_tokenizer)


def test_prepare_names_one_build_in_both_files(tmp_path):
    """Held-out documents of an earlier config, brought back beside the corpus that has them now, are noticed."""
    first, second = tmp_path / "first", tmp_path / "second"
    prepare.run(SimpleNamespace(data=dataclasses.replace(DATA, dir=str(first), heldout_fraction=0.1)))
    prepare.run(SimpleNamespace(data=dataclasses.replace(DATA, dir=str(second), tokenizer=str(first / "tokenizer"))))
    tokenizer = Tokenizer.load(second / "tokenizer")
    for folder in (first, second):
        check_heldout(folder / "corpus" / "gsm8k", tokenizer)
    for ending in ENDINGS:
        shutil.copy(first / "corpus" / f"gsm8k_heldout{ending}", second / "corpus")
    with pytest.raises(DataError, match="another build than gsm8k"):
        check_heldout(second / "corpus" / "gsm8k", tokenizer)
