"""Tokens of punctuation and line breaks: DeepSeek-V3's pre-tokenizer makes them, a share of their places is split."""

import numpy as np
import pytest

from r1train.data.boundaries import BoundarySplit, merged_tokens
from r1train.data.corpus import write_corpus
from r1train.data.corpus_part import PartOptions, PartWorker
from r1train.data.document_rules import document_rules
from r1train.data.pre_tokenizer import pre_tokenizer
from r1train.data.ring import TokenRing
from r1train.data.tokenizer import Tokenizer, save_tokenizer, train_tokenizer
from r1train.errors import DataError

# Lines that end in a full stop, in "):" and in nothing; two breaks in a row after the second.
TEXTS = [f"Line {n} of a text.\nif (a < b):\n\nthe end\nof it {n % 7}." for n in range(200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged")
    save_tokenizer(train_tokenizer(TEXTS, 330, fim=True, pre_tokenizer="deepseek_v3"), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def test_words_of_deepseek_v3():
    """As its tokenizer.json has them: three digits, a sign before letters, signs with line breaks, kana apart."""
    found = [
        word for word, _ in pre_tokenizer("deepseek_v3").pre_tokenize_str("f(x) = 12345.\n\nYes, \u65e5\u672c!\n  no")
    ]
    readable = [word.replace("\u0120", " ").replace("\u010a", "\n") for word in found]
    assert readable[:9] == ["f", "(x", ")", " =", " ", "123", "45", ".\n\n", "Yes"]
    assert readable[9:11] == [",", " "] and readable[12:] == ["!\n", " ", " no"]


def test_merged_tokens_by_hand(tokenizer):
    parts = merged_tokens(tokenizer)
    spelt = {tokenizer.decode([token]): [tokenizer.decode([part]) for part in ids] for token, ids in parts.items()}
    assert spelt == {".\n": [".", "\n"], "):\n\n": ["):", "\n\n"]} | {k: v for k, v in spelt.items() if k == "):\n"}
    assert "\n" not in spelt and "\n\n" not in spelt  # line breaks alone stay


def test_a_share_of_the_places_is_split_and_the_text_stays(tokenizer):
    split, places, chosen = BoundarySplit(0.3, 5, tokenizer), 0, 0
    for text in TEXTS:
        ids = np.array(tokenizer.encode(text))
        found = split.apply(ids, text)
        assert tokenizer.decode(found.tolist()) == text
        places += int(split.merged[ids].sum())
        chosen += len(found) - len(ids)
        assert np.array_equal(split.apply(ids, text), found)
    assert places == 400  # ".\n" and "):\n\n" of each
    assert 80 <= chosen <= 160  # 120 expected; four standard deviations are 37
    other = [BoundarySplit(0.3, 6, tokenizer).apply(np.array(tokenizer.encode(text)), text).tolist() for text in TEXTS]
    assert other != [split.apply(np.array(tokenizer.encode(text)), text).tolist() for text in TEXTS]


def test_by_hand(tokenizer):
    """Rate just below 1: every place. Each part is what the tokenizer gives it alone."""
    text = "a.\nb):\n\nc"
    whole = np.array(tokenizer.encode(text))
    ids = BoundarySplit(0.999999, 5, tokenizer).apply(whole, text).tolist()
    expected = ["a", ".", "\n", "b", "):", "\n\n", "c"]
    assert ids == [token for part in expected for token in tokenizer.encode(part)]
    assert BoundarySplit(0.0, 5, tokenizer).apply(np.array(tokenizer.encode(text)), text).tolist() == tokenizer.encode(
        text
    )


def test_corpora_have_it_and_heldout_ones_do_not(folder, tokenizer, tmp_path):
    rules = document_rules(tokenizer, fim_rate=0.0, split_rate=0.5, seed=5)
    for name, chosen in (("plain", {}), ("split", {"rules": rules})):
        write_corpus(TEXTS, tokenizer, tmp_path / name, **chosen)
    plain, split = (TokenRing(tmp_path / name) for name in ("plain", "split"))
    assert 150 <= split.num_tokens - plain.num_tokens <= 250  # 200 expected; five standard deviations
    tokens = split.read(0, split.num_tokens)
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.document_end_id) + 1)[:-1]
    assert [tokenizer.decode(document[:-1].tolist()) for document in documents] == TEXTS


def test_tokenizers_without_such_tokens_are_refused(small_tokenizer, folder, tmp_path):
    assert merged_tokens(small_tokenizer) == {}
    with pytest.raises(DataError, match="no token of punctuation and a line break.*pre-tokenizer deepseek_v3"):
        document_rules(small_tokenizer, fim_rate=0.0, split_rate=0.1, seed=5)
    with pytest.raises(DataError, match="boundary_split_rate 1.5: not a share"):
        PartWorker(PartOptions(tokenizer=str(folder), boundary_split_rate=1.5), tmp_path)
