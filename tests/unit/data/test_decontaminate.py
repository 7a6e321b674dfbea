"""n-grams: what counts as the same words, and against a plain set of joined words on real text."""

import pytest

from r1train.data.decontaminate import CleanTexts, NgramFilter, evaluation_file, evaluation_texts, words
from r1train.data.documents import gsm8k_rows
from r1train.errors import DataError

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_words():
    assert words("It's 2.5 km, OK?") == ["it", "s", "2", "5", "km", "ok"]
    assert words("\u6c42x\u7684\u503c caf\u00e9") == ["\u6c42", "x", "\u7684", "\u503c", "caf\u00e9"]


def test_one_word_less_is_no_match():
    ngrams = NgramFilter([THIRTEEN + " fourteen"], n=13)
    assert len(ngrams) == 2
    assert ngrams.find(f"Before. {THIRTEEN.upper().replace(' ', ', ')}! After.") == THIRTEEN
    assert ngrams.find(THIRTEEN.removesuffix(" thirteen") + " fourteen") is None
    assert ngrams.find("short") is None


def test_short_texts_count_whole_from_eight_words_on():
    ngrams = NgramFilter(["a b c d e f g h", "too short to count"], n=13)
    assert ngrams.find("x a b c d e f g h y") == "a b c d e f g h"
    assert ngrams.find("too short to count") is None
    with pytest.raises(DataError, match="no evaluation text has 8 words"):
        NgramFilter(["too short to count"], n=13)
    with pytest.raises(DataError, match="at least 1"):
        NgramFilter([THIRTEEN], n=0)


def test_agrees_with_plain_sets_on_real_text():
    """Five words, so that many of 300 real problems share some with 100 others, and many do not."""
    heldout = [row["question"] for row in gsm8k_rows("heldout")]
    grams = {" ".join(w[i : i + 5]) for w in map(words, heldout) for i in range(len(w) - 4)}
    ngrams = NgramFilter(heldout, n=5)
    assert len(ngrams) == len(grams)
    found = {True: 0, False: 0}
    for row in gsm8k_rows("train"):
        w = words(row["question"])
        expected = next((gram for i in range(len(w) - 4) if (gram := " ".join(w[i : i + 5])) in grams), None)
        assert ngrams.find(row["question"]) == expected
        found[expected is not None] += 1
    assert min(found.values()) > 30


def test_every_string_of_a_row_counts(tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text('{"id": "x", "turns": ["first", {"more": "second"}], "n": 3}\n')
    assert list(evaluation_texts([path])) == ["x", "first", "second"]


def test_shipped_rows_are_an_evaluation_set(tmp_path):
    texts = set(evaluation_texts([evaluation_file("builtin:gsm8k")]))
    assert {row["question"] for row in gsm8k_rows("heldout")} <= texts
    assert not {row["question"] for row in gsm8k_rows("train")} & texts
    assert evaluation_file(str(tmp_path / "a.jsonl")) == tmp_path / "a.jsonl"


def test_clean_texts_can_be_read_again():
    clean = CleanTexts(["first", f"x {THIRTEEN} y", "third", THIRTEEN], NgramFilter([THIRTEEN], n=13))
    assert clean.removed == {2: THIRTEEN, 4: THIRTEEN}
    assert list(clean) == list(clean) == ["first", "third"]
