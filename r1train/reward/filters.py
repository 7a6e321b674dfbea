"""Named filters of rejection sampling (R1 section 2.3.3): each says whether a sample has to go."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from r1train.config.schema_samples import FilterConfig
from r1train.data.prompts import Prompt
from r1train.reward.candidate import Candidate
from r1train.reward.format import extract_thinking
from r1train.reward.language import language_score
from r1train.reward.repetition import repetition

KEPT = "kept"
_PARAGRAPH = re.compile(r"\n\s*\n")
_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)


def could_not_be_graded(one: Candidate, cfg: FilterConfig) -> bool:
    return one.score.error is not None


def is_truncated(one: Candidate, cfg: FilterConfig) -> bool:
    return one.truncated


def has_wrong_format(one: Candidate, cfg: FilterConfig) -> bool:
    return one.score.parts["format"] != 1.0


def is_wrong(one: Candidate, cfg: FilterConfig) -> bool:
    """Tasks without a verifier have no accuracy; a judge may look at them."""
    return one.score.parts.get("accuracy", 1.0) != 1.0


def mixes_languages(one: Candidate, cfg: FilterConfig) -> bool:
    return cfg.language is not None and one.score.parts["language"] < cfg.language


def has_long_paragraph(one: Candidate, cfg: FilterConfig) -> bool:
    """Words between two blank lines of the thinking."""
    paragraphs = _PARAGRAPH.split(extract_thinking(one.text))
    return cfg.paragraph_words is not None and max(len(part.split()) for part in paragraphs) > cfg.paragraph_words


def has_code_block(one: Candidate, cfg: FilterConfig) -> bool:
    """A fenced block inside the thinking; the answer may have one."""
    return not cfg.code_in_thinking and _FENCE.search(extract_thinking(one.text)) is not None


def repeats_itself(one: Candidate, cfg: FilterConfig) -> bool:
    return cfg.repetition is not None and repetition(one.text, size=cfg.repetition_words) > cfg.repetition


# In this order; what a sample is removed by is the first that applies.
FILTERS: dict[str, Callable[[Candidate, FilterConfig], bool]] = {
    "grader error": could_not_be_graded,
    "truncated": is_truncated,
    "format": has_wrong_format,
    "wrong": is_wrong,
    "mixed language": mixes_languages,
    "long paragraph": has_long_paragraph,
    "code in thinking": has_code_block,
    "repetition": repeats_itself,
}


def verdict(one: Candidate, cfg: FilterConfig) -> str:
    """Name of the first filter that removes the sample, or KEPT."""
    return next((name for name, removes in FILTERS.items() if removes(one, cfg)), KEPT)


def passing(of_prompt: Sequence[Candidate], cfg: FilterConfig) -> tuple[list[Candidate], Counter[str]]:
    """The samples of one prompt that pass, without copies of an earlier one, and how many each filter removed."""
    removed: Counter[str] = Counter()
    kept: dict[str, Candidate] = {}
    for one in of_prompt:
        name = verdict(one, cfg)
        if name == KEPT and one.text in kept:
            name = "duplicate"
        if name == KEPT:
            kept[one.text] = one
        else:
            removed[name] += 1
    return list(kept.values()), removed


def reworded(one: Candidate, text: str, prompt: Prompt, *, repetition_words: int) -> Candidate:
    """The sample with another text of the same format and answer, and the parts of its score that look at the words.

    value stays that of the text that was sampled: it says how the policy did.
    """
    parts = dict(one.score.parts)
    if "language" in parts:
        parts["language"] = language_score(prompt, text)
    if "repetition" in parts:
        parts["repetition"] = repetition(text, size=repetition_words)
    return replace(one, text=text, score=replace(one.score, parts=parts))


CHOICES: dict[str, Callable[[Candidate], float]] = {
    "order": lambda one: one.index,
    "score": lambda one: -one.score.value,
    "shortest": lambda one: one.tokens,
    "longest": lambda one: -one.tokens,
}


def best(of_prompt: Sequence[Candidate], count: int, keep_by: str) -> list[Candidate]:
    """At most `count` samples of one prompt, the best by this choice; equal ones in order of their index."""
    chosen = sorted(of_prompt, key=lambda one: (CHOICES[keep_by](one), one.index))[:count]
    return sorted(chosen, key=lambda one: one.index)
