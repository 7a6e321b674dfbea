"""The corpus builtin:passkey: what a document holds, how long it is, and that its keys are not the evaluation's."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from r1train.config.schema_eval import PasskeyConfig
from r1train.config.schema_train import CorpusConfig, DataConfig, PasskeyDocuments
from r1train.data.chat import prompt_tokens
from r1train.data.passkey_corpus import passkey_documents, write_passkey_corpus
from r1train.data.passkey_text import FILLER, INTRODUCTION, QUESTION, Passkey, draw_key, is_evaluated, passkey_text
from r1train.data.ring import TokenRing
from r1train.errors import DataError
from r1train.eval.passkey import passkey_prompts
from r1train.stages import prepare

SETTINGS = PasskeyDocuments(max_tokens=400, documents=60, digits=3)


@pytest.fixture(scope="module")
def made(small_tokenizer):
    return list(passkey_documents(SETTINGS, small_tokenizer, seed=5, name="keys"))


def split(tokenizer, document):
    """Question, answer and last token of a document, which has exactly these and the chat's own tokens."""
    place = document.tolist().index(tokenizer.chat.after[-1])
    question, answer = tokenizer.decode(document[2:place]), tokenizer.decode(document[place + 1 : -1])
    assert document[: place + 1].tolist() == prompt_tokens(tokenizer, question)
    return question, answer, document[-1]


def test_text_by_hand():
    assert passkey_text("12345", before=1, after=2) == (
        INTRODUCTION
        + "The grass is green. The pass key is 12345. Remember it. 12345 is the pass key. The sky is blue. "
        "The sun is yellow. What is the pass key? The pass key is"
    )


def test_a_document_is_a_prompt_and_its_key(small_tokenizer, made):
    assert len(made) == 60
    depths = []
    for document in made:
        question, answer, last = split(small_tokenizer, document)
        assert last == small_tokenizer.document_end_id
        assert len(answer) == 3 and question.count(answer) == 2
        assert question.startswith(INTRODUCTION) and question.endswith(QUESTION)
        before, _, after = question.partition(f"The pass key is {answer}. ")
        left, right = (sum(part.count(sentence.strip()) for sentence in FILLER) for part in (before, after))
        assert question == passkey_text(answer, before=left, after=right)
        depths += [left / (left + right)] if left + right > 5 else []
    # A tenth at each end, the others in between: of about 50 long documents 5 and 5.
    assert 1 <= sum(depth == 0 for depth in depths) <= 12
    assert 1 <= sum(depth == 1 for depth in depths) <= 12
    assert len({round(depth, 1) for depth in depths}) >= 9


def test_lengths_spread_up_to_the_maximum_and_never_exceed_it(small_tokenizer, made):
    lengths = [len(document) for document in made]
    least = len(Passkey(small_tokenizer, "123", 0.0, chat=True).tokens(0)) + 3 + 1
    sentence = max(len(small_tokenizer.encode(text)) for text in FILLER)
    assert least <= min(lengths) < least + (400 - least) / 4
    assert 400 - (400 - least) / 4 < max(lengths) <= 400
    # The larger of two uniform numbers is two thirds on the mean; the mean of 60 strays by 0.03.
    assert (np.mean(lengths) - least) / (400 - least) == pytest.approx(2 / 3, abs=0.1)
    # A maximum that holds nothing but the prompt, the key and the end: every document is exactly that.
    short = dataclasses.replace(SETTINGS, max_tokens=least, documents=3)
    assert [len(document) for document in passkey_documents(short, small_tokenizer, seed=5, name="keys")] == [least] * 3
    for extra in range(sentence):
        longer = dataclasses.replace(short, max_tokens=least + extra, documents=1)
        assert len(next(passkey_documents(longer, small_tokenizer, seed=5, name="keys"))) <= least + extra
    tight = dataclasses.replace(short, max_tokens=least - 1)
    with pytest.raises(DataError, match=f"do not hold key, question and answer. Fix: {least} or more"):
        next(passkey_documents(tight, small_tokenizer, seed=5, name="keys"))


def test_documents_depend_on_seed_name_and_number_only(small_tokenizer, made):
    fewer = dataclasses.replace(SETTINGS, documents=2)
    again = list(passkey_documents(fewer, small_tokenizer, seed=5, name="keys"))
    assert all(np.array_equal(one, two) for one, two in zip(again, made[:2], strict=True))
    for seed, name in ((6, "keys"), (5, "others")):
        other = next(passkey_documents(fewer, small_tokenizer, seed=seed, name=name))
        assert split(small_tokenizer, other) != split(small_tokenizer, made[0])


@pytest.mark.parametrize("digits", [2, 3])
def test_no_trained_key_is_evaluated(small_tokenizer, digits):
    """Two digits: 90 keys, so that keys drawn without looking would meet; together the two sides are all keys."""
    settings = PasskeyDocuments(max_tokens=200, documents=300, digits=digits)
    trained = {
        split(small_tokenizer, one)[1] for one in passkey_documents(settings, small_tokenizer, seed=1, name="keys")
    }
    asked = PasskeyConfig(lengths=(200,), depths=(0.5,), problems=200, digits=digits, form="chat")
    evaluated = {prompt.answer for prompt in passkey_prompts(asked, small_tokenizer, seed=1)}
    assert len(trained) > 50 and len(evaluated) > 10
    assert trained.isdisjoint(evaluated)
    assert not any(map(is_evaluated, trained)) and all(map(is_evaluated, evaluated))


def test_both_sides_of_the_keys_and_their_shares():
    keys = [str(number) for number in range(10000, 100000)]
    assert sum(map(is_evaluated, keys)) / len(keys) == pytest.approx(0.2, abs=0.01)
    pairs = [str(number) for number in range(10, 100)]
    assert 5 < sum(map(is_evaluated, pairs)) < 40
    random = np.random.default_rng(0)
    assert is_evaluated(draw_key(random, 5, evaluated=True)) and not is_evaluated(draw_key(random, 5, evaluated=False))


def test_the_corpus_file_holds_the_documents(small_tokenizer, made, tmp_path):
    size = write_passkey_corpus(SETTINGS, small_tokenizer, tmp_path / "keys", seed=5)
    ring = TokenRing(tmp_path / "keys")
    assert (size.documents, size.tokens) == (60, sum(map(len, made))) == (ring.num_documents, ring.num_tokens)
    assert np.array_equal(ring.read(0, ring.num_tokens), np.concatenate(made))


def test_prepare_makes_it_beside_text(tmp_path):
    """All of it trains, whatever is held out of other corpora; the tokenizer knows the filler's words."""
    data = DataConfig(
        name="test",
        dir=str(tmp_path / "data"),
        tokenizer_vocab_size=400,
        corpora=(
            CorpusConfig(name="gsm8k", source="builtin:gsm8k", weight=0.5),
            CorpusConfig(name="keys", source="builtin:passkey", weight=0.5, passkey=SETTINGS),
        ),
        tasks=(),
        worked_examples=0,
        seed=5,
        heldout_fraction=0.1,
    )
    summary = prepare.run(SimpleNamespace(data=data))
    assert summary["corpora"]["keys"]["documents"] == 60
    assert list(summary["heldout_corpora"]) == ["gsm8k"]
    tokenizer = prepare.Tokenizer.load(tmp_path / "data" / "tokenizer")
    assert len(tokenizer.encode(" The sky is blue.")) == 5
    assert prepare.run(SimpleNamespace(data=data)) == summary
