"""One function per kind of IFEval instruction: response text and the instruction's arguments -> is it followed?

Names, arguments and thresholds are those of the published data (arXiv 2311.07911, table 1 and its data files). Two
things are approximate, because the original asks packages for them: sentences are counted by punctuation, and words in
capitals by white space. The language is py3langid's.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from py3langid.langid import MODEL_FILE, LanguageIdentifier

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATIONS = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|[A-Z])\.(?=\s+\S)")
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
_FIRST_WORD_ENDS = re.compile(r"[.,?!'\"]")


def compares(count: int, relation: str, limit: int) -> bool:
    """`less than` or `at least`, the two relations of the data."""
    return count < limit if relation == "less than" else count >= limit


def count_sentences(text: str) -> int:
    """Runs of text that end in . ! or ?, and a last one that ends in nothing; abbreviations do not end one."""
    parts = _SENTENCE_END.split(_ABBREVIATIONS.sub("x", text))
    return sum(bool(re.search(r"\w", part)) for part in parts)


def existence(text: str, keywords: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return compares(text.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compares(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    return language_of(text) == language


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return compares(count_sentences(text), relation, num_sentences)


def number_words(text: str, num_words: int, relation: str) -> bool:
    return compares(len(re.findall(r"\w+", text)), relation, num_words)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs divided by ***; an empty one may stand at the ends only."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs divided by blank lines; blank ones do not count towards their number."""
    parts = text.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or nth_paragraph > len(parts):
        return False
    words = parts[nth_paragraph - 1].split()
    if not words:
        return False
    return _FIRST_WORD_ENDS.split(words[0].lstrip("'\""))[0].lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """A space may stand after each full stop of the marker (P. S.)."""
    pattern = re.escape(postscript_marker).replace(r"\.", r"\.\s?").removesuffix(r"\s?")
    return re.search(pattern, text, re.IGNORECASE) is not None


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in ANSWERS)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """*one star* or **two stars**, not blank and within a line."""
    single = [found for found in re.findall(r"\*[^\n*]*\*", text) if found.strip("*").strip()]
    double = [found for found in re.findall(r"\*\*[^\n*]*\*\*", text) if found.strip("*").strip()]
    return len(single) + len(double) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", text)) >= num_sections


def json_format(text: str) -> bool:
    bare = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(fence)
    try:
        json.loads(bare.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    return any(found.strip("<>").strip() for found in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    """Two different ones divided by ******; an empty part may stand at the ends only."""
    parts = [part.strip() for part in text.split("******")]
    full = [part for part in parts if part]
    return all(parts[1:-1]) and len(full) == 2 and full[0] != full[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return compares(sum(word.isupper() for word in text.split()), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    return text.isupper() and language_of(text) == "en"


def english_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) == "en"


def no_comma(text: str) -> bool:
    return "," not in text


def language_of(text: str) -> str:
    """ISO 639-1 code of the most likely language; capitals say nothing about it."""
    return str(_identifier().classify(text.lower() if text.isupper() else text)[0])


@cache
def _identifier() -> LanguageIdentifier:
    """py3langid's model, all of its languages (0.5 s to load)."""
    return LanguageIdentifier.from_model_file(MODEL_FILE)


# Name in the data -> rule, types of its arguments.
_WHOLE: tuple[type, ...] = (int,)
_WORD: tuple[type, ...] = (str,)
_WORDS: tuple[type, ...] = (list,)
_TABLE: dict[str, tuple[Callable[..., bool], dict[str, tuple[type, ...]]]] = {
    "keywords:existence": (existence, {"keywords": _WORDS}),
    "keywords:frequency": (frequency, {"keyword": _WORD, "frequency": _WHOLE, "relation": _WORD}),
    "keywords:forbidden_words": (forbidden_words, {"forbidden_words": _WORDS}),
    "keywords:letter_frequency": (
        letter_frequency,
        {"letter": _WORD, "let_frequency": _WHOLE, "let_relation": _WORD},
    ),
    "language:response_language": (response_language, {"language": _WORD}),
    "length_constraints:number_sentences": (number_sentences, {"num_sentences": _WHOLE, "relation": _WORD}),
    "length_constraints:number_words": (number_words, {"num_words": _WHOLE, "relation": _WORD}),
    "length_constraints:number_paragraphs": (number_paragraphs, {"num_paragraphs": _WHOLE}),
    "length_constraints:nth_paragraph_first_word": (
        nth_paragraph_first_word,
        {"num_paragraphs": _WHOLE, "nth_paragraph": _WHOLE, "first_word": _WORD},
    ),
    "detectable_content:number_placeholders": (number_placeholders, {"num_placeholders": _WHOLE}),
    "detectable_content:postscript": (postscript, {"postscript_marker": _WORD}),
    "detectable_format:number_bullet_lists": (number_bullet_lists, {"num_bullets": _WHOLE}),
    "detectable_format:constrained_response": (constrained_response, {}),
    "detectable_format:number_highlighted_sections": (number_highlighted_sections, {"num_highlights": _WHOLE}),
    "detectable_format:multiple_sections": (multiple_sections, {"section_spliter": _WORD, "num_sections": _WHOLE}),
    "detectable_format:json_format": (json_format, {}),
    "detectable_format:title": (title, {}),
    "combination:two_responses": (two_responses, {}),
    "combination:repeat_prompt": (repeat_prompt, {"prompt_to_repeat": _WORD}),
    "startend:end_checker": (end_checker, {"end_phrase": _WORD}),
    "startend:quotation": (quotation, {}),
    "change_case:capital_word_frequency": (
        capital_word_frequency,
        {"capital_frequency": _WHOLE, "capital_relation": _WORD},
    ),
    "change_case:english_capital": (english_capital, {}),
    "change_case:english_lowercase": (english_lowercase, {}),
    "punctuation:no_comma": (no_comma, {}),
}
RULES: dict[str, Callable[..., bool]] = {name: rule for name, (rule, _) in _TABLE.items()}
ARGUMENTS: dict[str, dict[str, Any]] = {name: arguments for name, (_, arguments) in _TABLE.items()}
