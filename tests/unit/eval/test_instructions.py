"""Every kind of IFEval instruction on texts that were judged by hand."""

import pytest

from r1train.eval.instruction_rules import ARGUMENTS, RULES, count_sentences
from r1train.eval.instructions import check_instructions, follow, loose_variants

AT_LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}
LONG_ENGLISH = "The weather in the mountains was calm and the children were playing near the old river house. "
GERMAN = "Der Hund lief durch den Garten und suchte den ganzen Tag nach seinem alten Knochen. "
PARAGRAPHS = "First one.\n***\nSecond one.\n***\nThird one."
WORDS = 'One two three.\n\n"Weekend" plans are made.\n\nThe end.'

CASES = [
    ("keywords:existence", {"keywords": ["sky", "Blue"]}, "The SKY is blue.", "The sky is grey."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, **AT_LEAST}, "Go and go.", "Go away."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, **LESS}, "Go away.", "Go and go."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "The category is fine.", "A Cat sat."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Even here.",
        "No e or two.",
    ),
    ("language:response_language", {"language": "de"}, GERMAN * 2, LONG_ENGLISH * 2),
    ("length_constraints:number_sentences", {"num_sentences": 3, **AT_LEAST}, "A is. B is! C is?", "Mr. X is. B is!"),
    ("length_constraints:number_words", {"num_words": 4, **LESS}, "one two three", "one two, three four"),
    ("length_constraints:number_words", {"num_words": 4, **AT_LEAST}, "one two three four", "one two three"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, PARAGRAPHS, "One\n***\nTwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, PARAGRAPHS + "\n***\n", "A***B******C"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "weekend"},
        WORDS,
        WORDS.replace('"Weekend"', "Weekends"),
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 1, "first_word": "one"},
        WORDS,
        WORDS + "\n\nA fourth.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name] only"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. More.", "Bye. PS more."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. More.", "Bye.\nP.S. More."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n - two", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "Well: My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na\nsection 2\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1, 2]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<Ode to joy>>\nFreude", "<< >>\nFreude"),
    ("combination:two_responses", {}, "First.\n******\nSecond.", "Same.******Same."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say HI. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, 'So. "is that all?"', "Is that all? Yes."),
    ("startend:quotation", {}, ' "Quoted." ', '"Half'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "NASA flew.",
        "NASA AND ESA flew.",
    ),
    ("change_case:english_capital", {}, LONG_ENGLISH.upper(), LONG_ENGLISH),
    ("change_case:english_lowercase", {}, LONG_ENGLISH.lower(), LONG_ENGLISH),
    ("punctuation:no_comma", {}, "No comma here.", "Well, one."),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_rule(name, arguments, good, bad):
    assert check_instructions([name], [arguments]) is None
    assert RULES[name](good, **arguments) is True
    assert RULES[name](bad, **arguments) is False


def test_every_kind_has_a_case():
    assert {name for name, *_ in CASES} == set(RULES) == set(ARGUMENTS)
    assert len(RULES) == 25


def test_loosely_an_introduction_and_asterisks_are_forgiven():
    ids, kwargs = ["startend:quotation", "punctuation:no_comma"], [{}, {}]
    polite = 'Sure, here it is:\n*"All good."*'
    assert follow(polite, ids, kwargs).strict == (False, False)
    assert follow(polite, ids, kwargs).loose == (True, True)
    assert follow('"All good."', ids, kwargs).strict == (True, True)
    assert follow(" \n", ["punctuation:no_comma"], [{}]).loose == (False,)
    assert loose_variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("keywords:rhyme", {}, "'keywords:rhyme' is not known"),
        ("punctuation:no_comma", {"n": 1}, r"has the arguments \['n'\], it takes \[\]"),
        ("detectable_format:number_bullet_lists", {"num_bullets": "3"}, "has a wrong type"),
    ],
)
def test_unknown_instructions_are_said(name, arguments, message):
    import re

    assert re.search(message, check_instructions([name], [arguments]))


@pytest.mark.parametrize(
    ("text", "count"),
    [("One. Two! Three?", 3), ("Dr. A. Smith came.", 1), ("No end", 1), ('He said "Stop." Then left...', 2), ("", 0)],
)
def test_sentences(text, count):
    assert count_sentences(text) == count
