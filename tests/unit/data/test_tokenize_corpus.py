"""The corpus builder: same bytes for any number of workers and kills, every bad row named, splits and contamination."""

import dataclasses
import gzip
import json
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from r1train.data.corpus import write_corpus
from r1train.data.corpus_build import BuildPlan, BuildStopped, build_corpus
from r1train.data.corpus_part import PartOptions, PartReport, PartWorker
from r1train.data.document_rules import DocumentRules
from r1train.data.documents import documents, gsm8k_rows
from r1train.data.encode import _PIECE_CHARACTERS, _pieces, encode_documents
from r1train.data.fim import FimRule, fim_parts
from r1train.data.ring import TokenRing
from r1train.data.rows import read_parts, row_text
from r1train.data.split import in_heldout
from r1train.data.tokenizer import FIM_TOKENS, SPECIAL_TOKENS, Tokenizer, save_tokenizer, train_tokenizer
from r1train.errors import DataError


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fim_tokenizer")
    save_tokenizer(train_tokenizer(documents("builtin:gsm8k"), 320, fim=True), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="module")
def texts():
    return [f"{row['question']}\n{row['solution']}" for row in gsm8k_rows("train")]


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"body": text}) + "\n" for text in texts)
    return path


def plan(prefix, inputs, folder, **changes):
    options = PartOptions(tokenizer=str(folder), text_field="body", **changes)
    return BuildPlan(tuple(map(str, inputs)), prefix, options, part_bytes=20_000)


def run_parts(worker, inputs, part_bytes=20_000):
    """The work of build_corpus in this process: reports of the parts."""
    worker._folder.mkdir(exist_ok=True)
    return [worker.run(part) for part in read_parts([str(path) for path in inputs], "body", part_bytes)]


def decoded(prefix, tokenizer):
    ring = TokenRing(prefix)
    return tokenizer.decode(ring.read(0, ring.num_tokens).tolist()).split("<|eos|>")[:-1]


def test_any_number_of_workers_and_one_pass_give_the_same_files(tmp_path, rows_file, tokenizer_folder, texts):
    """Also after a kill: the second build starts from the parts that the first one had finished."""
    seen: list[tuple[int, bool]] = []
    full = plan(tmp_path / "two", [rows_file], tokenizer_folder)

    def stop_after_three(part, is_new):
        seen.append((part.index, is_new))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus(full, workers=2, max_bad_rows=0, on_part=stop_after_three)
    assert not (tmp_path / "two.bin").exists()
    again: list[tuple[int, bool]] = []
    report = build_corpus(
        full, workers=1, max_bad_rows=0, on_part=lambda part, is_new: again.append((part.index, is_new))
    )
    parts = len(list(read_parts([str(rows_file)], "body", 20_000)))
    assert parts > 4
    assert sorted(index for index, _ in again) == list(range(parts))
    assert sum(not is_new for _, is_new in again) >= 3
    size = write_corpus(texts, Tokenizer.load(tokenizer_folder), tmp_path / "one")
    assert report.train == size
    for ending in (".bin", ".idx"):
        assert (tmp_path / f"two{ending}").read_bytes() == (tmp_path / f"one{ending}").read_bytes()
    made_by = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    assert made_by[1] == {**made_by[0], "build": full.fingerprint()}
    left = sorted(path.name for path in tmp_path.glob("two*"))
    assert left == ["two.bin", "two.idx", "two.json", "two.report.jsonl"]
    with pytest.raises(DataError, match=r"two.bin, .*: already there"):
        build_corpus(full, workers=1, max_bad_rows=0, on_part=lambda *_: None)


def test_killed_worker_and_other_inputs_are_errors(tmp_path, rows_file, tokenizer_folder):
    (tmp_path / "x.parts").mkdir()
    (tmp_path / "x.parts" / "inputs").write_text("other")
    with pytest.raises(DataError, match="unfinished work with other inputs"):
        build_corpus(
            plan(tmp_path / "x", [rows_file], tokenizer_folder), workers=1, max_bad_rows=0, on_part=lambda *_: None
        )
    assert issubclass(BuildStopped, Exception) and BuildStopped("x").exit_code == 1


def test_a_killed_tool_leaves_no_process_and_continues(repo, tmp_path, texts, tokenizer_folder):
    path, prefix = tmp_path / "many.jsonl", tmp_path / "many"
    path.write_text("".join(json.dumps({"text": text * 12}) + "\n" for text in texts * 6))  # two parts
    command = [sys.executable, "-W", "ignore", str(repo / "tools" / "tokenize_corpus.py"), "--input", str(path)]
    command += ["--tokenizer", str(tokenizer_folder), "--out-prefix", str(prefix), "--workers", "1"]
    environment = {"PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not list(tmp_path.glob("many.parts/*.report")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert started
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert not prefix.with_suffix(".bin").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ring = TokenRing(prefix)
    assert ring.num_documents == 6 * len(texts)
    assert f"{ring.num_documents} documents, {ring.num_tokens} tokens" in done.stdout


def test_bad_rows_are_named_and_counted(tmp_path, tokenizer_folder):
    path = tmp_path / "bad.jsonl"
    good = b'{"body": "good"}\n'
    bad = [b"{\n", b'{"text": "x"}\n', b'{"body": 3}\n', b'{"body": " "}\n', b'{"body": "caf\xe9"}\n']
    path.write_bytes(good + b"".join(bad) + good + b'{"body": "\\ud800"}\n')
    worker = PartWorker(PartOptions(tokenizer=str(tokenizer_folder), text_field="body"), tmp_path / "parts")
    (report,) = run_parts(worker, [path])
    assert report.sizes[""].documents == 2
    expected = [
        (2, "not JSON"),
        (3, "field 'body' is missing"),
        (4, "field 'body' is int, not str"),
        (5, "field 'body' is empty"),
        (6, "not UTF-8 (invalid continuation byte at byte 13)"),
        (8, "half of a surrogate pair"),
    ]
    assert [place for place, _ in report.bad] == [f"{path}:{line}" for line, _ in expected]
    assert all(reason.startswith(start) for (_, reason), (_, start) in zip(report.bad, expected, strict=True))


def test_too_many_bad_rows_stop_the_build_but_keep_the_work(tmp_path, tokenizer_folder):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"body": "good"}\n{\n[]\n')
    what = plan(tmp_path / "out", [path], tokenizer_folder)
    with pytest.raises(DataError, match=r"2 bad rows, allowed are 1:\n  - .*bad.jsonl:2: not JSON"):
        build_corpus(what, workers=1, max_bad_rows=1, on_part=lambda *_: None)
    assert not (tmp_path / "out.bin").exists()
    fresh: list[bool] = []
    report = build_corpus(what, workers=1, max_bad_rows=2, on_part=lambda _, is_new: fresh.append(is_new))
    assert (report.train.documents, report.bad_rows, fresh) == (1, 2, [False])
    listed = [json.loads(line) for line in (tmp_path / "out.report.jsonl").read_text().splitlines()]
    assert [row["place"] for row in listed] == [f"{path}:2", f"{path}:3"]


def test_heldout_documents_and_contaminated_ones(tmp_path, rows_file, texts, tokenizer_folder, tokenizer):
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text(json.dumps({"id": "a", "problem": texts[7].upper()}) + "\n")
    options = PartOptions(
        tokenizer=str(tokenizer_folder), text_field="body", heldout_fraction=0.2, decontaminate=(str(evaluation),)
    )
    reports = run_parts(PartWorker(options, tmp_path / "parts"), [rows_file], part_bytes=10**9)
    kept = texts[:7] + texts[8:]
    heldout = [text for text in kept if in_heldout(text, 0.2)]
    assert 30 < len(heldout) < 90  # 60 expected, four standard deviations are 28
    assert decoded(tmp_path / "parts" / "part_0000000_heldout", tokenizer) == heldout
    train = [text for text in kept if not in_heldout(text, 0.2)]
    assert decoded(tmp_path / "parts" / "part_0000000", tokenizer) == train
    assert [place for place, _ in reports[0].removed] == [f"{rows_file}:8"]
    assert len(reports[0].removed[0][1].split()) == 13


def test_fim_keeps_every_token_once(texts, tokenizer):
    """PSM: begin, prefix, hole, suffix, end, middle, eos; about a tenth of the documents."""
    rule = FimRule(rate=0.1, seed=3)
    chosen = [text for text in texts if fim_parts(text, rule)]
    assert 10 <= len(chosen) <= 50  # 300 documents: 30 expected, four standard deviations are 21
    begin, hole, end = tokenizer.fim_ids
    assert (begin, hole, end) == (9, 10, 11) == tuple(range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 3))
    for text, ids in zip(texts, encode_documents(texts, tokenizer, DocumentRules(fim=rule)), strict=True):
        ids = ids.tolist()
        parts = fim_parts(text, rule)
        if parts is None:
            assert ids == [*tokenizer.encode(text), tokenizer.eos_id]
            continue
        prefix, middle, suffix = map(tokenizer.encode, parts)
        assert "".join(parts) == text
        assert ids == [begin, *prefix, hole, *suffix, end, *middle, tokenizer.eos_id]
    assert [bool(fim_parts(text, FimRule(0.1, 4))) for text in texts] != [bool(fim_parts(t, rule)) for t in texts]


def test_fim_tokens_are_there_only_when_asked_for(tmp_path, rows_file, small_tokenizer, tokenizer):
    assert small_tokenizer.fim_ids is None
    assert [tokenizer.encode(token, special=True) for token in FIM_TOKENS] == [[9], [10], [11]]
    save_tokenizer(train_tokenizer(documents("builtin:gsm8k"), 300), tmp_path)
    with pytest.raises(DataError, match="a tokenizer without FIM tokens"):
        PartWorker(PartOptions(tokenizer=str(tmp_path), fim_rate=0.1), tmp_path)
    for bad in ({"heldout_fraction": 1.0}, {"fim_rate": -0.1}):
        with pytest.raises(DataError, match="not a share"):
            PartWorker(PartOptions(tokenizer=str(tmp_path), **bad), tmp_path)
    with pytest.raises(DataError, match="at least 268"):
        train_tokenizer(["abab"], 267, fim=True)


def test_long_documents_are_cut_where_tokens_cannot_change(tokenizer):
    """Against the whole text at once, with digits, punctuation, newlines and letters beyond ASCII around the cuts."""
    words = ["plain", "words", "can't", "4096", "x = 3", "\n\n  indented", "caf\u00e9 \u4f60\u597d", "end."]
    generator = np.random.default_rng(0)
    text = " ".join(words[index] for index in generator.integers(0, len(words), 150_000))
    pieces = _pieces(text)
    assert len(pieces) == len(text) // _PIECE_CHARACTERS + 1 >= 4
    assert "".join(pieces) == text
    (ids,) = encode_documents([text], tokenizer)
    assert ids.tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    assert _pieces("a" * (2 * _PIECE_CHARACTERS)) == ["a" * (2 * _PIECE_CHARACTERS)]


def test_text_files_name_the_line_a_document_begins_in(tmp_path):
    path = tmp_path / "books.txt"
    path.write_text("one\nstill one\n\f\n\f\ntwo\f three \n")
    (part,) = read_parts([str(path)], "text")
    assert [(row.number, row_text(row, "text")[0]) for row in part.rows] == [
        (1, "one\nstill one"),
        (4, "two"),
        (5, "three"),
    ]
    assert [text for text in documents(str(path))] == ["one\nstill one", "two", "three"]


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["one", None, "caf\u00e9"], "n": [1, 2, 3]}), path)
    (part,) = read_parts([str(path)], "body")
    assert [row_text(row, "body") for row in part.rows] == [("one", ""), ("", "'body' is null"), ("caf\u00e9", "")]
    with pytest.raises(DataError, match=r"no text column 'text'; it has body \(string\), n \(int64\)"):
        list(read_parts([str(path)], "text"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        list(read_parts([str(path)], "body"))


def test_zstd(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.jsonl.zst"
    with arrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(b'{"text": "one"}\n{"text": "two"}\n' * 500)
    assert list(documents(str(path))) == ["one", "two"] * 500
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be read"):
        list(documents(str(path)))


def test_bad_inputs_are_named_together(tmp_path, tokenizer_folder):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "a.pdf").write_text("x")
    inputs = [tmp_path / "none.jsonl", tmp_path / "empty.jsonl", tmp_path / "a.pdf"]
    inputs += ["builtin:worked", "builtin:nonsense", "builtin:gsm8k"]
    with pytest.raises(DataError, match="5 of 6 inputs cannot be read") as caught:
        build_corpus(plan(tmp_path / "o", inputs, tokenizer_folder), workers=1, max_bad_rows=0, on_part=lambda *_: None)
    assert all(text in str(caught.value) for text in ("none.jsonl: no such file", "empty.jsonl: empty", "a.pdf: not"))
    ours = "builtin:text and builtin:gsm8k can be read here"
    assert f"builtin:worked: made by the prepare stage only; {ours}" in str(caught.value)
    assert f"builtin:nonsense: the package ships no such documents; {ours}" in str(caught.value)
    assert not (tmp_path / "o.parts").exists()


def test_part_reports_survive_their_file(tmp_path, rows_file, tokenizer_folder):
    worker = PartWorker(PartOptions(tokenizer=str(tokenizer_folder), text_field="body"), tmp_path / "p")
    first = run_parts(worker, [rows_file])[0]
    assert isinstance(first, PartReport) and dataclasses.asdict(first)["sizes"][""]["documents"] > 10
