"""n-grams: what counts as the same words, and against a plain set of joined words on real text."""

import re
import sys
import unicodedata

import pytest

from r1train.data.decontaminate import (
    _INVISIBLE,
    CleanTexts,
    NgramFilter,
    evaluation_file,
    evaluation_texts,
    words,
)
from r1train.data.documents import gsm8k_rows
from r1train.errors import DataError

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_words():
    assert words("It's 2.5 km, OK?") == ["it", "s", "2", "5", "km", "ok"]
    assert words("\u6c42x\u7684\u503c caf\u00e9") == ["\u6c42", "x", "\u7684", "\u503c", "caf\u00e9"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("caf\u00e9 Zu\u0308rich", ["caf\u00e9", "z\u00fcrich"]),  # the second spelled in two characters (NFD)
        ("cafe\u0301 Z\u00fcrich", ["caf\u00e9", "z\u00fcrich"]),
        ("\uff11\uff12\uff13 \uff21\uff42\uff43", ["123", "abc"]),  # full width
        ("\ufb01ve m\u00b2", ["five", "m2"]),  # a ligature, a superscript
        ("\u1112\u1161\u11ab", ["\ud55c"]),  # Hangul in parts
        # Hindi: signs of vowels and of none (virama) in the middle and at the end of words, category M.
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u092d\u093e\u0937\u093e"],
        ),
        ("q\u0323\u0307y z\U00011046\U00011047", ["q\u0323\u0307y", "z\U00011046"]),  # marks without a whole; Brahmi
        (
            "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
            ["\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22"],
        ),  # Thai: no spaces, one word
        ("ex\u00adam\u200dple\ufeff \u2764\ufe0f 1\ufe0f", ["example", "1"]),  # soft hyphen, joiner, glyph variants
        ("\uff76\uff9e\u30fb\u30ab\u3099 \U00020000\u845b\U000e0100", ["\u30ac", "\u30ac", "\U00020000", "\u845b"]),
    ],
)
def test_words_do_not_depend_on_how_unicode_spells_them(text, expected):
    assert words(text) == words(unicodedata.normalize("NFD", text)) == expected


def test_no_mark_splits_a_word():
    """All of category M, between two letters; the letters alone where it cannot be seen."""
    marks = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char).startswith("M")]
    assert len(marks) > 2000
    assert [hex(ord(mark)) for mark in marks if len(words(f"q{mark}q")) != 1] == []
    assert [hex(ord(mark)) for mark in marks if (words(f"q{mark}q") == ["qq"]) != bool(_INVISIBLE.match(mark))] == []


def test_ascii_words_are_those_of_all_characters():
    """The short way for ASCII gives what the other, taken because of the last character, does."""
    every = "".join(map(chr, range(128)))
    for text in (every, every[::-1], "Ab_c-9x  4.5\tq"):
        assert words(text) == words(text + " \u00a7") == re.findall("[a-z0-9]+", text.lower())


def test_one_spelling_finds_the_other():
    """On both sides: what the evaluation set has composed, the document has in parts, and the other way round."""
    text = (
        "le caf\u00e9 o\u00f9 l'\u00e9t\u00e9 \uff11\uff12 \u00e9l\u00e8ves de Z\u00fcrich ont vu une \u00eele en mer"
    )
    spelled = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    for of_set in spelled:
        ngrams = NgramFilter([of_set], n=13)
        assert [ngrams.find(f"x {of_document}") for of_document in spelled] == [" ".join(words(text)[:13])] * 4


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
    message = "'builtin:nonsense': the package ships no such set. Fix: builtin:gsm8k, or a jsonl file"
    with pytest.raises(DataError, match=message):
        evaluation_file("builtin:nonsense")


def test_clean_texts_can_be_read_again():
    clean = CleanTexts(["first", f"x {THIRTEEN} y", "third", THIRTEEN], NgramFilter([THIRTEEN], n=13))
    assert clean.removed == {2: THIRTEEN, 4: THIRTEEN}
    assert list(clean) == list(clean) == ["first", "third"]
