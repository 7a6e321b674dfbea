"""The prepare stage: what it writes, that it is deterministic, and that a rerun does only what is needed."""

import dataclasses
import filecmp
import json
from types import SimpleNamespace

import pytest

from r1train.config.schema_train import CorpusConfig, DataConfig, TaskConfig
from r1train.data.files import read_rows
from r1train.data.problems import normalised
from r1train.data.prompts import PromptSet
from r1train.data.ring import TokenRing
from r1train.data.sft import SftSource
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError
from r1train.stages import prepare

CHAIN_SUM = TaskConfig(
    name="chain_sum",
    train=60,
    heldout=20,
    cold_start=30,
    params={"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1},
    styles={"steps": 0.4, "direct": 0.6},
)
GSM8K = TaskConfig(name="gsm8k", train=20, heldout=10, cold_start=10, params={}, styles={"steps": 1.0})


def config(folder, **changes):
    data = DataConfig(
        name="test",
        dir=str(folder),
        tokenizer_vocab_size=320,
        corpora=(
            CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=1.0),
            CorpusConfig(name="worked", source="builtin:worked", weight=1.0),
        ),
        tasks=(CHAIN_SUM, GSM8K),
        worked_examples=200,
        seed=1,
    )
    return SimpleNamespace(data=dataclasses.replace(data, **changes))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare") / "data"
    return folder, prepare.run(config(folder))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_summary_and_files(prepared):
    folder, summary = prepared
    assert summary["train"] == {"chain_sum": 60, "gsm8k": 20}
    assert summary["heldout"] == {"chain_sum": 20, "gsm8k": 10}
    assert summary["cold_start"] == 40
    assert {name: size["documents"] for name, size in summary["corpora"].items()} == {"gsm8k": 300, "worked": 200}
    assert files(folder) == [
        "_DONE",
        "cold_start.jsonl",
        "corpus/gsm8k.bin",
        "corpus/gsm8k.idx",
        "corpus/gsm8k.json",
        "corpus/worked.bin",
        "corpus/worked.idx",
        "corpus/worked.json",
        "prompts/heldout.jsonl",
        "prompts/train.jsonl",
        "tokenizer/tokenizer.json",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["data"]
    assert TokenRing(folder / "corpus" / "worked").num_tokens == summary["corpora"]["worked"]["tokens"]


def test_files_fit_their_readers_and_share_no_question(prepared):
    folder, _ = prepared
    tokenizer = Tokenizer.load(folder / "tokenizer")
    assert tokenizer.vocab_size == 320
    train = PromptSet(folder / "prompts" / "train.jsonl", tokenizer, seed=0)
    heldout = PromptSet(folder / "prompts" / "heldout.jsonl", tokenizer, seed=0)
    cold = read_rows(folder / "cold_start.jsonl", {"id": str, "task": str, "prompt": str, "response": str})
    assert len(SftSource(folder / "cold_start.jsonl", tokenizer, seq_length=512, seed=0).samples) == 40
    questions = [
        {normalised(prompt.question) for prompt in train.prompts},
        {normalised(prompt.question) for prompt in heldout.prompts},
        {normalised(row["prompt"]) for row in cold},
    ]
    assert [len(x) for x in questions] == [80, 30, 40]
    assert len(set.union(*questions)) == 150
    ring = TokenRing(folder / "corpus" / "worked")
    lines = tokenizer.decode(ring.read(0, ring.num_tokens).tolist()).split("<|eos|>")[:-1]
    worked = {line.split(" : ")[0] for line in lines}
    assert len(worked) == 200
    assert not worked & set.union(*questions)
    first = lines[0].split(" so ")
    assert eval(first[0].split("=")[0]) == int(first[1])


def test_deterministic(prepared, tmp_path):
    folder, summary = prepared
    assert prepare.run(config(tmp_path / "data")) == summary
    assert files(tmp_path / "data") == files(folder)
    _, different, errors = filecmp.cmpfiles(folder, tmp_path / "data", files(folder), shallow=False)
    assert (different, errors) == ([], [])


def test_rerun_does_nothing_and_change_rebuilds(tmp_path):
    folder = tmp_path / "data"
    summary = prepare.run(config(folder))
    (folder / "keep.txt").write_text("of another stage")
    before = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    assert prepare.run(config(folder)) == summary
    assert {name: (folder / name).stat().st_mtime_ns for name in files(folder)} == before
    (folder / "prompts" / "train.jsonl").unlink()
    assert prepare.run(config(folder)) == summary
    changed = prepare.run(config(folder, tasks=(CHAIN_SUM,)))
    assert changed["train"] == {"chain_sum": 60}
    assert json.loads((folder / "_DONE").read_text())["summary"] == changed
    assert len((folder / "prompts" / "train.jsonl").read_text().splitlines()) == 60
    assert (folder / "keep.txt").exists()


def test_changed_source_file_rebuilds(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("Some text of our own.")
    corpora = (
        CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=1.0),
        CorpusConfig(name="own", source=str(path), weight=1),
    )
    changes = {"corpora": corpora, "worked_examples": 0}
    first = prepare.run(config(tmp_path / "data", **changes))
    path.write_text("Some text of our own, and more of it.")
    second = prepare.run(config(tmp_path / "data", **changes))
    assert second["corpora"]["own"]["tokens"] > first["corpora"]["own"]["tokens"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corpora": (CorpusConfig(name="x", source="nowhere.txt", weight=1.0),), "worked_examples": 0},
            "no such file",
        ),
        ({"tasks": (CHAIN_SUM, CHAIN_SUM)}, "each once"),
        ({"worked_examples": 0}, "worked_examples above 0 together with"),
        ({"tasks": (GSM8K,)}, "no task has written solutions"),
        ({"tokenizer_vocab_size": 100}, "at least 265"),
    ],
)
def test_refuses_and_leaves_nothing(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        prepare.run(config(tmp_path / "data", **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rebuild_keeps_the_old_data(tmp_path):
    folder = tmp_path / "data"
    summary = prepare.run(config(folder))
    with pytest.raises(DataError):
        prepare.run(config(folder, tokenizer_vocab_size=100))
    assert prepare.run(config(folder)) == summary


def test_fim_is_part_of_the_data_and_the_loader_is_not(tmp_path):
    """Another loader reads the same files; another FIM rate makes new ones, with a tokenizer that has its tokens."""
    folder = tmp_path / "data"
    plain = config(folder)
    prepare.run(plain)
    before = (folder / "_DONE").stat().st_mtime_ns
    prepare.run(
        SimpleNamespace(
            data=dataclasses.replace(plain.data, loader="dali", packing="best_fit", mask_across_documents=True)
        )
    )
    assert (folder / "_DONE").stat().st_mtime_ns == before
    assert Tokenizer.load(folder / "tokenizer").fim_ids is None
    prepare.run(SimpleNamespace(data=dataclasses.replace(plain.data, fim_rate=0.1)))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    ring = TokenRing(folder / "corpus" / "gsm8k")
    tokens = ring.read(0, ring.num_tokens)
    counts = [int((tokens == token).sum()) for token in tokenizer.fim_ids]
    assert counts[0] == counts[1] == counts[2]
    assert 10 <= counts[0] <= 50  # 300 documents: 30 expected, four standard deviations are 21


def test_text_alone_needs_no_tasks(tmp_path):
    gsm8k = CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=1.0)
    summary = prepare.run(config(tmp_path / "data", corpora=(gsm8k,), tasks=(), worked_examples=0))
    assert (summary["train"], summary["heldout"], summary["cold_start"]) == ({}, {}, 0)
    assert summary["corpora"]["gsm8k"]["documents"] == 300


def test_chats_are_the_cold_start_rows_in_the_frame_of_fine_tuning(tmp_path):
    gsm8k = CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=0.9)
    chats = CorpusConfig(name="chats", source="builtin:chats", weight=0.1)
    folder = tmp_path / "data"
    summary = prepare.run(config(folder, corpora=(gsm8k, chats), tasks=(CHAIN_SUM,), worked_examples=0))
    assert summary["corpora"]["chats"]["documents"] == 30
    tokenizer = Tokenizer.load(folder / "tokenizer")
    ring = TokenRing(folder / "corpus" / "chats")
    found = tokenizer.decode(ring.read(0, ring.num_tokens).tolist()).split("<|eos|>")[:-1]
    rows = read_rows(folder / "cold_start.jsonl", {"prompt": str, "response": str})
    expected = {f"<|bos|><|user|>{row['prompt']}<|assistant|>{row['response']}" for row in rows}
    assert set(found) == expected and len(found) == 30


def test_a_key_that_is_not_used_leaves_the_data_as_they_were(tmp_path):
    """Data that were prepared before the key existed are not made again for it."""
    data = config(tmp_path).data
    assert prepare._fingerprint(dataclasses.replace(data, decontaminate_words=10)) == prepare._fingerprint(data)


def test_deepseek_v3s_words_and_split_boundaries(tmp_path):
    """Half of the tokens of punctuation and line break are two in training documents, none of them in held-out ones."""
    gsm8k = CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=1.0)
    words = {"pre_tokenizer": "deepseek_v3", "boundary_split_rate": 0.5, "heldout_fraction": 0.2}
    folder = tmp_path / "data"
    prepare.run(config(folder, corpora=(gsm8k,), tasks=(), worked_examples=0, tokenizer_vocab_size=400, **words))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    (merged,), (stop,), (line_break,) = map(tokenizer.encode, (".\n", ".", "\n"))
    for name, low, high in (("gsm8k", 0.45, 0.55), ("gsm8k_heldout", 0.0, 0.0)):
        ring = TokenRing(folder / "corpus" / name)
        tokens = ring.read(0, ring.num_tokens)
        apart = int(((tokens[:-1] == stop) & (tokens[1:] == line_break)).sum())
        assert low <= apart / (apart + int((tokens == merged).sum())) <= high


def test_keys_of_later_versions_keep_older_data(tmp_path, monkeypatch):
    """A hash that was made before data.pre_tokenizer is that of the same data now; another value is other data."""
    plain = config(tmp_path / "data").data
    now = prepare._fingerprint(plain)
    assert prepare._fingerprint(dataclasses.replace(plain, pre_tokenizer="deepseek_v3")) != now
    monkeypatch.setattr(prepare, "NOT_IN_FILES", (*prepare.NOT_IN_FILES, *prepare.NEWER))
    assert prepare._fingerprint(plain) == now
