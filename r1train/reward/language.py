"""Language consistency: share of target-language words in the chain of thought (DeepSeek-R1 section 2.3.2).

Identification is py3langid's. It needs more than a few words, so it is asked about windows of text and believed where
it is confident; elsewhere the script decides.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from r1train.data.prompts import Prompt
from r1train.errors import DataError
from r1train.reward.format import extract_thinking

# What a chain of thought is likely to be in. Among all 140 of py3langid's, "wait" would be Walloon.
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "vi", "zh")
MIN_WORDS = 6
CONFIDENCE = 0.8

_LATEX_COMMAND = re.compile(r"\\[a-zA-Z]+")
_SENTENCE_END = re.compile(r"[.!?;\n\u3002\uff01\uff1f\uff1b]+")
_NO_SPACES = frozenset({"CJK", "THAI"})  # scripts that do not divide words: each letter counts as a word
_PART_OF = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "FULLWIDTH": "LATIN"}


@dataclass(frozen=True)
class Window:
    """Words of one script from neighbouring sentences; language None: too short or not clear."""

    script: str
    words: int
    language: str | None


def language_score(prompt: Prompt, response: str) -> float:
    """Words of the target language / words of the chain of thought, in [0, 1].

    A chain of thought of numbers and signs alone has 1.0: nothing in it is in another language, and less would teach
    the policy to pad sums with words. A blank one has 0.0: leaving out the thinking must not earn what thinking earns.
    Words are runs of letters; LaTeX commands and single letters of an alphabet (variables) are none; in Chinese,
    Japanese and Thai each character is one. The target is prompt.metadata["language"] (ISO 639-1), else the question's
    language, else the language of most of the chain of thought: of its words in the question's script where that has
    too few words to tell (Compute 3+4.), of all where it has none (3+4=?). Raises DataError for a language that is not
    in LANGUAGES.
    """
    thinking = extract_thinking(response)
    if not thinking.strip():
        return 0.0
    windows = split_windows(thinking)
    total = sum(window.words for window in windows)
    if total == 0:
        return 1.0
    question = split_windows(prompt.question)
    target = _stated_language(prompt) or _most_words([w for w in question if w.language], "language")
    candidates = windows
    if target is None and question:
        # Too few words to name a language still tell its script.
        candidates = [w for w in windows if w.script in {q.script for q in question}]
    if target is None:
        target = _most_words([w for w in candidates if w.language], "language")
    known = [w for w in windows if w.language is not None and w.language == target]
    scripts = {w.script for w in [*question, *known]} or {_most_words(windows, "script") or ""}
    same = sum(w.words for w in windows if (w.script in scripts if w.language is None else w.language == target))
    return same / total


def split_windows(text: str) -> list[Window]:
    """Gathers the words of each script over whole sentences until there are MIN_WORDS, then names their language."""
    windows: list[Window] = []
    open_words: dict[str, list[str]] = {}
    for sentence in _SENTENCE_END.split(_LATEX_COMMAND.sub(" ", text)):
        for script, word in _words(sentence):
            open_words.setdefault(script, []).append(word)
        full = [script for script, words in open_words.items() if len(words) >= MIN_WORDS]
        windows.extend(_window(script, open_words.pop(script)) for script in full)
    return windows + [_window(script, words) for script, words in open_words.items()]


def _words(sentence: str) -> list[tuple[str, str]]:
    """(script, word) in order; a run of letters that changes script is cut there."""
    found: list[tuple[str, str]] = []
    for script, letters in groupby(unicodedata.normalize("NFC", sentence), key=_script):
        if script in _NO_SPACES:
            found.extend((script, letter) for letter in letters if letter.isalpha())
        elif script:
            found.append((script, "".join(letters)))
    return [(script, word) for script, word in found if script in _NO_SPACES or len(word) > 1]


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """First word of the Unicode name of a letter or vowel sign: LATIN, CYRILLIC, CJK, ...; empty for all else."""
    if unicodedata.category(letter)[0] not in "LM":
        return ""
    name = unicodedata.name(letter, "UNKNOWN").split(" ")[0]
    return _PART_OF.get(name, name)


def _window(script: str, words: list[str]) -> Window:
    language = None
    if len(words) >= MIN_WORDS:
        best, probability = _identifier().classify(("" if script in _NO_SPACES else " ").join(words))
        language = best if probability >= CONFIDENCE else None
    return Window(script, len(words), language)


@cache
def _identifier() -> LanguageIdentifier:
    """py3langid's model (0.5 s to load), restricted to LANGUAGES."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


def _stated_language(prompt: Prompt) -> str | None:
    stated = prompt.metadata.get("language")
    if stated is not None and stated not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise DataError(f"prompt {prompt.id}: metadata language = {stated!r} is not known. Fix: one of {known}")
    return stated


def _most_words(windows: list[Window], field: str) -> str | None:
    counts: Counter[str] = Counter()
    for window in windows:
        counts[vars(window)[field]] += window.words
    return counts.most_common(1)[0][0] if counts else None
