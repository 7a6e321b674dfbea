"""Finds documents that share a run of words with an evaluation set (n-gram decontamination; R1 app. D.1 uses 10)."""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from r1train.data.documents import BUILTIN_PREFIX, asset
from r1train.data.files import read_rows
from r1train.errors import DataError

# Words are runs of letters and digits, lower case; a Chinese or Japanese character is a word of its own.
_ASCII_WORD = re.compile("[a-z0-9]+")
_EAST_ASIAN = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
# Seen by nobody, but in the middle of words: soft hyphen, joiners, marks of direction, byte order and glyph variants.
_INVISIBLE = re.compile("[\u00ad\u180b-\u180f\u200c-\u200f\u2060\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")
# All combining marks but those of glyph variants are below; a look at every character would take 0.2 s.
_RARE, _MARKS_END = 0x10000, 0x20000
# Shorter texts of an evaluation set are no evidence: many documents say "find the value of x".
_LEAST_WORDS = 8
_SHIPPED = "_heldout.jsonl.gz"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words that n-grams are made of: case, punctuation, space and how Unicode spells a character do not matter.

    Accents and vowel signs do matter. Scripts without spaces (Thai, Khmer): what stands between two spaces is one word.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _word().findall(unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).lower())


@functools.cache
def _word() -> re.Pattern[str]:
    """Letters, digits and the combining marks on them: for Python's \\w a vowel sign of Hindi is no part of a word."""
    common, rare = (
        "".join(char for char in map(chr, places) if unicodedata.category(char).startswith("M"))
        for places in (range(_RARE), range(_RARE, _MARKS_END))
    )
    # The rare ones are asked for only where such a character stands: in one set with the others, 2.5 times as slow.
    mark, letter = rf"(?:[{common}]+|(?=[{chr(_RARE)}-{chr(_MARKS_END)}])[{rare}])", rf"[^\W_{_EAST_ASIAN}]"
    return re.compile(rf"[{_EAST_ASIAN}]{mark}*|{letter}+(?:{mark}{letter}*)*")


class NgramFilter:
    """Every n-gram of the evaluation texts; a text of 8 to n - 1 words counts as a whole."""

    def __init__(self, texts: Iterable[str], *, n: int):
        """Raises DataError when no text has enough words, or n is below 1."""
        if n < 1:
            raise DataError(f"n-grams of {n} words. Fix: at least 1; 13 is usual")
        self._ids: dict[str, int] = {}
        # By length, because short texts count whole: n-grams as tuples of word ids, and their sorted hashes.
        self._grams: dict[int, set[tuple[int, ...]]] = {}
        for text in texts:
            ids = [self._ids.setdefault(word, len(self._ids) + 1) for word in words(text)]
            length = min(n, len(ids))
            if length >= min(n, _LEAST_WORDS):
                grams = self._grams.setdefault(length, set())
                grams.update(tuple(ids[at : at + length]) for at in range(len(ids) - length + 1))
        if not self._grams:
            raise DataError(f"no evaluation text has {min(n, _LEAST_WORDS)} words. Fix: other files, or a smaller n")
        self._hashes = {
            length: np.unique(_window_hashes(np.array(sorted(grams), dtype=np.uint64).ravel(), length)[::length])
            for length, grams in self._grams.items()
        }

    def __len__(self) -> int:
        return sum(map(len, self._grams.values()))

    def find(self, text: str) -> str | None:
        """The first n-gram of the text that an evaluation set has too (longest kind first), or None."""
        found = words(text)
        ids = np.fromiter((self._ids.get(word, 0) for word in found), dtype=np.uint64, count=len(found))
        for length in sorted(self._grams, reverse=True):
            if len(ids) < length:
                continue
            hashes, known = _window_hashes(ids, length), self._hashes[length]
            places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            for at in np.flatnonzero(known[places] == hashes):
                if tuple(ids[at : at + length].tolist()) in self._grams[length]:
                    return " ".join(found[at : at + length])
        return None


def _window_hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """A polynomial hash, modulo 2 ** 64, of every window of `length` ids: uint64 [n - length + 1]."""
    count = len(ids) - length + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        hashes = hashes * _MULTIPLIER + ids[offset : offset + count]
    return hashes


class CleanTexts:
    """Documents without those that share an n-gram with an evaluation set; from the beginning each time it is read.

    removed: number of the document, from 1, and the n-gram of those that are left out.
    """

    def __init__(self, texts: Iterable[str], ngrams: NgramFilter):
        """texts: can be read again; looked through once, here."""
        self._texts = texts
        found = ((number, ngrams.find(text)) for number, text in enumerate(texts, start=1))
        self.removed: dict[int, str] = {number: ngram for number, ngram in found if ngram is not None}

    def __iter__(self) -> Iterator[str]:
        return (text for number, text in enumerate(self._texts, start=1) if number not in self.removed)


def evaluation_file(name: str) -> Path:
    """A file of an evaluation set by its path, or by builtin:gsm8k the rows of it that ship as held-out ones.

    Raises DataError for a builtin set that does not ship.
    """
    if not name.startswith(BUILTIN_PREFIX):
        return Path(name)
    path = asset(name.removeprefix(BUILTIN_PREFIX) + _SHIPPED)
    if not path.is_file():
        known = ", ".join(
            BUILTIN_PREFIX + one.name.removesuffix(_SHIPPED) for one in sorted(asset("").glob("*" + _SHIPPED))
        )
        raise DataError(f"evaluation set {name!r}: the package ships no such set. Fix: {known}, or a jsonl file")
    return path


def evaluation_texts(paths: Iterable[Path]) -> Iterator[str]:
    """Every string in every row of the jsonl files: questions, answers, solutions. Raises DataError as read_rows."""
    for path in paths:
        for row in read_rows(path, {}):
            yield from _strings(row)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
