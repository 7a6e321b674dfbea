"""Language consistency: hand-counted shares."""

import pytest

from r1train.data.prompts import Prompt
from r1train.errors import DataError
from r1train.reward.language import language_score, split_windows

ENGLISH = "First we add the tens and then we add the ones."  # 11 words
GERMAN = "Zuerst addieren wir die Zehner und danach die Einer."  # 9 words
CHINESE = "\u9996\u5148\u6211\u4eec\u628a\u4e24\u4e2a\u6570\u76f8\u52a0"  # 10 characters
RUSSIAN = "\u0421\u043d\u0430\u0447\u0430\u043b\u0430 \u043c\u044b \u0441\u043b\u043e\u0436\u0438\u043c"  # 3 words
QUESTION = "Natalia sold clips to 48 of her friends in April. How many clips did she sell?"


def score(thinking, question=QUESTION, metadata=None):
    prompt = Prompt(id="p", task="t", question=question, answer="1", metadata=metadata or {}, token_ids=(0,))
    return language_score(prompt, f"<think>{thinking}</think><answer>1</answer>")


@pytest.mark.parametrize("thinking", ["12+30=42", "12 + x = 42, x = 30", "\\frac{1}{2} \\cdot 4 = 2"])
def test_no_words_is_consistent(thinking):
    assert score(thinking) == 1.0
    assert score(thinking, question="12+30=") == 1.0


@pytest.mark.parametrize("thinking", ["", " \n "])
def test_no_thinking_earns_nothing(thinking):
    assert score(thinking) == 0.0


def test_target_from_the_question():
    assert score(ENGLISH) == 1.0
    assert score(GERMAN) == 0.0
    assert score(CHINESE) == 0.0


def test_mixed_share_is_exact():
    assert score(f"{ENGLISH} {GERMAN}") == pytest.approx(11 / 20, abs=1e-12)
    assert score(f"{ENGLISH} {CHINESE}") == pytest.approx(11 / 21, abs=1e-12)


def test_one_foreign_word_of_another_script():
    # 11 English words, two Chinese characters: too few to name a language, but the question has none of their script.
    assert score(f"{ENGLISH[:-1]} \u7b54\u6848.") == pytest.approx(11 / 13, abs=1e-12)


def test_short_text_of_the_right_script_counts():
    assert score("ok so 42") == 1.0


def test_stated_language_wins():
    assert score(GERMAN, metadata={"language": "de"}) == 1.0
    assert score(ENGLISH, metadata={"language": "de"}) == 0.0
    assert score(CHINESE, metadata={"language": "zh"}) == 1.0


def test_unknown_stated_language_is_an_error():
    with pytest.raises(DataError, match="metadata language = 'tlh' is not known"):
        score(ENGLISH, metadata={"language": "tlh"})


def test_a_question_too_short_for_a_language_still_tells_its_script():
    assert score(CHINESE, question="Compute 3+4.") == 0.0
    assert score(CHINESE[:2], question="Compute 3+4.") == 0.0
    assert score(ENGLISH, question="Compute 3+4.") == 1.0
    assert score("ok so 42", question="Compute 3+4.") == 1.0
    assert score(f"{ENGLISH} {CHINESE}{CHINESE}", question="Compute 3+4.") == pytest.approx(11 / 31, abs=1e-12)
    assert score(ENGLISH, question="\u8ba1\u7b97 3+4") == 0.0
    assert score(CHINESE, question="\u8ba1\u7b97 3+4") == 1.0


def test_question_without_words_asks_for_one_language():
    assert score(ENGLISH, question="12+30=") == 1.0
    assert score(GERMAN, question="12+30=") == 1.0
    assert score(f"{ENGLISH} {ENGLISH} {GERMAN}", question="12+30=") == pytest.approx(22 / 31, abs=1e-12)
    assert score("ok so 42", question="12+30=") == 1.0


@pytest.mark.parametrize(
    ("text", "script", "words", "language"),
    [
        (ENGLISH, "LATIN", 11, "en"),
        (GERMAN, "LATIN", 9, "de"),
        (CHINESE, "CJK", 10, "zh"),
        ("\u307e\u305a\u6570\u3092\u8db3\u3057\u307e\u3059", "CJK", 8, "ja"),
        (RUSSIAN, "CYRILLIC", 3, None),
        ("\u092a\u0939\u0932\u0947 \u0939\u092e \u0938\u0902\u0916\u094d\u092f\u093e", "DEVANAGARI", 3, None),
    ],
)
def test_windows(text, script, words, language):
    (window,) = split_windows(text)
    assert (window.script, window.words, window.language) == (script, words, language)
