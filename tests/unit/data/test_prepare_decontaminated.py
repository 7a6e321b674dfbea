"""The prepare stage with evaluation sets: what is left out of corpora, prompts and cold start, and what is refused."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from r1train.config.schema_train import CorpusConfig, DataConfig, TaskConfig
from r1train.data.decontaminate import words
from r1train.data.documents import gsm8k_rows
from r1train.data.files import read_rows
from r1train.errors import DataError
from r1train.stages import prepare

GSM8K_CORPUS = CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=1.0)
CHAIN_SUM = TaskConfig(
    name="chain_sum",
    train=60,
    heldout=20,
    cold_start=30,
    params={"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1},
    styles={"steps": 0.4, "direct": 0.6},
)
GSM8K = TaskConfig(name="gsm8k", train=20, heldout=10, cold_start=10, params={}, styles={"steps": 1.0})
SUMS = TaskConfig(
    name="sums",
    train=3,
    heldout=1,
    cold_start=0,
    params={},
    styles={},
    template="Please think about this for a while, and then give the number alone as your answer: {question}",
)


def config(folder, **changes):
    data = DataConfig(
        name="test",
        dir=str(folder),
        tokenizer_vocab_size=320,
        corpora=(GSM8K_CORPUS,),
        tasks=(CHAIN_SUM, GSM8K),
        worked_examples=0,
        seed=1,
    )
    return SimpleNamespace(data=dataclasses.replace(data, **changes))


def rows_of(path, questions):
    path.write_text("".join(json.dumps({"question": question, "answer": "7"}) + "\n" for question in questions))
    return str(path)


def test_prompts_and_chats_that_hold_an_evaluation_set_are_left_out_too(tmp_path, caplog):
    """R1 filters both. Of generated sums, too short to be evidence, nothing goes; a template does not count."""
    shown = gsm8k_rows("train")[:20]
    own = "the seven small cats of the old lighthouse keeper sleep on a warm stone wall all day long"
    texts = [f"Once {own}, how many?", "A question of a very different kind about ships.", "And one about trains."]
    suite = rows_of(tmp_path / "suite.jsonl", [own, shown[0]["question"], shown[-1]["solution"], SUMS.template])
    sums = dataclasses.replace(
        SUMS,
        train_file=rows_of(tmp_path / "train.jsonl", texts),
        heldout_file=rows_of(tmp_path / "heldout.jsonl", ["What is 3 + 4?"]),
    )
    gsm8k = dataclasses.replace(GSM8K, train=5, cold_start=15)
    changes = {
        "tasks": (CHAIN_SUM, gsm8k, sums),
        "corpora": (
            CorpusConfig(name="text", source="builtin:text", weight=1.0),
            CorpusConfig(name="chats", source="builtin:chats", weight=1.0),
        ),
    }
    folder = tmp_path / "data"
    plain = prepare.run(config(folder, **changes))
    assert plain["removed_problems"] == {} and not (folder / "prompts" / "removed.jsonl").exists()
    assert plain["train"] == {"chain_sum": 60, "gsm8k": 5, "sums": 3} and plain["cold_start"] == 45
    summary = prepare.run(config(folder, **changes, decontaminate=(suite,)))
    assert summary["removed_problems"] == {"train": {"gsm8k": 1, "sums": 1}, "cold_start": {"gsm8k": 1}}
    assert summary["train"] == {"chain_sum": 60, "gsm8k": 4, "sums": 2}
    assert summary["heldout"] == plain["heldout"]
    assert summary["cold_start"] == summary["corpora"]["chats"]["documents"] == 44
    listed = read_rows(folder / "prompts" / "removed.jsonl", {"set": str, "id": str, "task": str, "contaminated": str})
    assert [(row["set"], row["id"]) for row in listed] == [
        ("train", "gsm8k/train/000000"),
        ("cold_start", "gsm8k/cold_start/000014"),
        ("train", "sums/train/000000"),
    ]
    assert listed[2]["contaminated"] == " ".join(own.split()[:13])
    assert "train: problems left out, listed in prompts/removed.jsonl: {'gsm8k': 1, 'sums': 1}" in caplog.text
    kept = read_rows(folder / "prompts" / "train.jsonl", {"id": str})
    assert len(kept) == 66 and not {row["id"] for row in kept} & {row["id"] for row in listed}


def test_an_evaluation_set_of_the_same_generator_is_refused(tmp_path):
    """Every problem of it has the words of the set; an empty prompt set would show up in RL at the earliest."""
    primes = TaskConfig(name="prime_factorization", train=5, heldout=5, cold_start=0, params={}, styles={})
    folder = tmp_path / "first"
    changes = {"tasks": (primes,)}
    prepare.run(config(folder, **changes))
    with pytest.raises(DataError, match="'prime_factorization': each of its 5 train problems shares words with a file"):
        prepare.run(config(tmp_path / "data", **changes, decontaminate=(f"{folder}/prompts/heldout.jsonl",)))
    assert not (tmp_path / "data").exists()


def test_a_reference_that_no_verifier_takes_is_refused(tmp_path):
    """Here, not after the first rollout of RL."""
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "How old is x?", "answer": "x^2"}) + "\n")
    task = dataclasses.replace(GSM8K, train=1, heldout=0, cold_start=0, train_file=str(tmp_path / "train.jsonl"))
    message = "data.tasks: 1 of 1 problems cannot be graded:\n  - gsm8k/train/000000 .task gsm8k.: the reference .*x.2"
    with pytest.raises(DataError, match=message):
        prepare.run(config(tmp_path / "data", tasks=(task,)))
    assert not (tmp_path / "data").exists()


def test_documents_that_hold_an_evaluation_set_are_left_out_and_listed(tmp_path, caplog):
    """Of four documents one holds a shipped held-out question, one a question of a file; FIM and splits come after."""
    question = gsm8k_rows("heldout")[0]["question"]
    own = "the seven small cats of the old lighthouse keeper sleep on a warm stone wall all day long"
    (tmp_path / "suite.jsonl").write_text(json.dumps({"problem": own, "answer": "7"}) + "\n")
    texts = ["A first text.", f"Before it. {question.upper()} After it.", f"Once {own}!", "A last text, also clean."]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = str(tmp_path / "own.jsonl")
    corpora = (GSM8K_CORPUS, CorpusConfig(name="own", source=source, weight=1.0))
    names = ("builtin:gsm8k", str(tmp_path / "suite.jsonl"))
    changes = {"corpora": corpora, "heldout_fraction": 0.5}
    with_filter = {**changes, "decontaminate": names}
    folder = tmp_path / "data"
    summary = prepare.run(config(folder, **with_filter))
    assert summary["removed"] == {"gsm8k": 0, "own": 2}
    sizes = [summary[part].get("own", {"documents": 0})["documents"] for part in ("corpora", "heldout_corpora")]
    assert sum(sizes) == 2
    listed = read_rows(folder / "corpus" / "own.report.jsonl", {})
    assert [row["place"] for row in listed] == [f"{source}:2", f"{source}:3"]
    assert listed[0]["contaminated"] == " ".join(words(question)[:13])
    assert listed[1]["contaminated"] == " ".join(own.split()[:13])
    assert (folder / "corpus" / "gsm8k.report.jsonl").read_text() == ""
    assert "own: 2 documents left out, listed in corpus/own.report.jsonl" in caplog.text

    before = (folder / "_DONE").stat().st_mtime_ns
    assert prepare.run(config(folder, **with_filter)) == summary  # nothing to do
    assert (folder / "_DONE").stat().st_mtime_ns == before
    (tmp_path / "suite.jsonl").write_text(json.dumps({"problem": "eight words that no document here ever says"}) + "\n")
    assert prepare.run(config(folder, **with_filter))["removed"] == {"gsm8k": 0, "own": 1}
    assert prepare.run(config(folder, **with_filter, decontaminate_words=5))["removed"]["gsm8k"] > 30
    assert prepare.run(config(folder, **changes))["removed"] == {}
    assert not (folder / "corpus" / "own.report.jsonl").exists()
