"""Documents from every kind of source, and corpora read back token by token."""

import gzip
import json
import lzma
import subprocess
import sys

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from r1train.data.corpus import CorpusSize, write_corpus
from r1train.data.documents import asset, documents, gsm8k_rows
from r1train.data.ring import TokenRing
from r1train.errors import DataError


def test_corpus_reads_back_equal(tmp_path, small_tokenizer):
    texts = [*list(documents("builtin:gsm8k"))[:40], "caf\u00e9 <|eos|>", "7"]
    expected = [[*small_tokenizer.encode(text), small_tokenizer.eos_id] for text in texts]
    size = write_corpus(iter(texts), small_tokenizer, tmp_path / "deep" / "name.v1")
    assert size == CorpusSize(documents=42, tokens=sum(map(len, expected)))
    data = IndexedDataset(str(tmp_path / "deep" / "name.v1"))
    assert [document.tolist() for document in data] == expected
    assert data.document_indices.tolist() == list(range(43))
    assert data.index.dtype == np.uint16
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["name.v1.bin", "name.v1.idx", "name.v1.json"]
    made_by = json.loads((tmp_path / "deep" / "name.v1.json").read_text())
    assert (made_by["tokenizer"], made_by["documents"]) == (small_tokenizer.content_hash, 42)


def test_ring_is_the_concatenation(tmp_path, small_tokenizer):
    write_corpus(["one", "two two", "three"], small_tokenizer, tmp_path / "c")
    flat = [token for text in ("one", "two two", "three") for token in [*small_tokenizer.encode(text), 1]]
    ring = TokenRing(tmp_path / "c")
    assert (ring.num_tokens, ring.num_documents) == (len(flat), 3)
    assert ring.read(0, len(flat)).tolist() == flat
    assert ring.read(len(flat) - 2, 5).tolist() == flat[-2:] + flat[:3]
    assert ring.read(3 * len(flat) + 1, 2 * len(flat)).tolist() == (flat[1:] + flat + flat)[: 2 * len(flat)]


@pytest.mark.parametrize(
    ("suffix", "opener"), [("", open), (".gz", gzip.open), (".xz", lzma.open)], ids=["plain", "gz", "xz"]
)
def test_text_and_jsonl_in_every_compression(tmp_path, suffix, opener):
    with opener(tmp_path / f"a.txt{suffix}", "wt", encoding="utf-8") as file:
        file.write("one\n\nstill one\n\f\n\f two \f")
    with opener(tmp_path / f"b.jsonl{suffix}", "wt", encoding="utf-8") as file:
        file.write('{"text": "x\\ny"}\n{"text": "\u00e9", "more": 1}\n')
    assert list(documents(str(tmp_path / f"a.txt{suffix}"))) == ["one\n\nstill one", "two"]
    assert list(documents(str(tmp_path / f"b.jsonl{suffix}"))) == ["x\ny", "\u00e9"]


def test_shipped_data():
    chapters = list(documents("builtin:text"))
    assert len(chapters) == 35
    assert chapters[-1].endswith('"Pieces of eight! Pieces of eight!"')
    assert len(gsm8k_rows("train")) == 300
    assert len(gsm8k_rows("heldout")) == 100
    first = gsm8k_rows("train")[0]
    assert first["answer"] == "72"
    assert first["solution"].startswith("Natalia sold 48/2 = 24 clips in May.")
    assert "####" not in first["solution"]
    assert sum(path.stat().st_size for path in asset("").iterdir()) < 600_000


def test_malformed_rows_are_counted_and_named(tmp_path, small_tokenizer):
    path = tmp_path / "rows.jsonl"
    bad = ["{", "[]", "{}", '{"text": 3}', '{"text": " "}', "", "nope"]
    path.write_text("\n".join(['{"text": "good"}', *bad]) + "\n")
    with pytest.raises(DataError) as caught:
        write_corpus(documents(str(path)), small_tokenizer, tmp_path / "out")
    message = str(caught.value)
    assert "7 of 8 rows are malformed" in message
    assert "line 2: not JSON" in message
    assert "line 3: not a JSON object" in message
    assert "line 4: field 'text' is missing" in message
    assert "line 5: field 'text' is int, not str" in message
    assert "line 6: field 'text' is empty" in message
    assert "and 2 more" in message
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_bad_sources(tmp_path, small_tokenizer):
    (tmp_path / "empty.txt").write_text(" \n\f\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"text " * 1000)[:-12])
    (tmp_path / "not.txt.gz").write_bytes(b"plain")
    (tmp_path / "not.txt.xz").write_bytes(b"plain")
    for name, message in (
        ("empty.txt", "no documents"),
        ("latin.txt", "not UTF-8"),
        ("cut.txt.gz", "cannot be read"),
        ("not.txt.gz", "cannot be read"),
        ("not.txt.xz", "cannot be read"),
        ("missing.txt", "no such file"),
        ("book.pdf", "suffix not known. Fix: .txt or .jsonl, plain or .gz, .xz or .zst"),
    ):
        with pytest.raises(DataError, match=message):
            write_corpus(documents(str(tmp_path / name)), small_tokenizer, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))
    for name, why in (("other", "the package ships no such documents"), ("worked", "made by the prepare stage only")):
        with pytest.raises(DataError, match=rf"'builtin:{name}': {why}. Fix: .* builtin:text, builtin:gsm8k$"):
            list(documents(f"builtin:{name}"))


def run_tool(repo, name, *args):
    command = [sys.executable, "-W", "ignore", str(repo / "tools" / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(repo)})


def test_tools(tmp_path, repo):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents("builtin:gsm8k")))
    out = tmp_path / "tok"
    trained = run_tool(repo, "train_tokenizer.py", "--input", tmp_path / "a.jsonl", "--vocab-size", 280, "--out", out)
    assert trained.returncode == 0, trained.stderr
    arguments = ["--tokenizer", out, "--out-prefix", tmp_path / "c"]
    written = run_tool(repo, "tokenize_corpus.py", "--input", tmp_path / "a.jsonl", *arguments)
    assert written.returncode == 0, written.stderr
    assert len(IndexedDataset(str(tmp_path / "c"))) == 300
    refused = run_tool(repo, "tokenize_corpus.py", "--input", tmp_path / "no.txt", *arguments)
    assert refused.returncode == 2
    assert "no such file" in refused.stderr
    assert "Traceback" not in refused.stderr
    negative = run_tool(repo, "tokenize_corpus.py", "--input", "builtin:text", *arguments, "--max-bad-rows", "-1")
    assert negative.returncode == 2
    assert "argument --max-bad-rows: -1 is below 0" in negative.stderr
    small = run_tool(repo, "train_tokenizer.py", "--input", "builtin:gsm8k", "--vocab-size", 10, "--out", out)
    assert small.returncode == 2
