"""Each filter of rejection sampling on a sample made for it, their order, the choice per prompt, and stored samples."""

import json
import math
from dataclasses import replace

import pytest

from r1train.config.schema_samples import FilterConfig
from r1train.errors import DataError
from r1train.reward.base import Score
from r1train.reward.candidate import Candidate, prompt_from_row, prompt_to_row
from r1train.reward.filters import FILTERS, best, passing, verdict
from r1train.reward.samples import read_samples

STRICT = FilterConfig(paragraph_words=5, code_in_thinking=False, repetition=0.2, repetition_words=4)
GOOD = Score(3.0, {"format": 1.0, "accuracy": 1.0, "language": 1.0}, None)


def sample(thinking: str = "a b c", index: int = 0, **changes) -> Candidate:
    text = f"<think>{thinking}</think><answer>7</answer>"
    values = {"prompt_id": "p", "task": "t", "question": "q", "tokens": 10, "truncated": False, "policy_version": 4}
    return Candidate(**{**values, "index": index, "text": text, "score": GOOD, **changes})


def scored(**parts: float) -> Candidate:
    return sample(score=Score(1.0, {**GOOD.parts, **parts}, None))


FENCE = "so\n```python\nx\n```"
CASES = {
    "grader error": sample(score=Score(math.nan, {"format": 1.0}, "crash")),
    "truncated": sample(truncated=True),
    "format": scored(format=0.0),
    "wrong": scored(accuracy=0.0),
    "mixed language": scored(language=0.89),
    "long paragraph": sample("one two\n\none two three four five six"),
    "code in thinking": sample(FENCE),
    "repetition": sample("x," * 20),
}


@pytest.mark.parametrize("name", CASES)
def test_each_filter(name):
    assert verdict(CASES[name], STRICT) == name
    assert verdict(sample(), STRICT) == "kept"


def test_every_filter_has_a_case():
    assert list(CASES) == list(FILTERS)


def test_the_first_reason_counts():
    one = replace(CASES["wrong"], truncated=True, text=CASES["repetition"].text)
    assert verdict(one, STRICT) == "truncated"


def test_filters_can_be_left_out():
    off = FilterConfig(language=None)
    assert all(verdict(CASES[name], off) == "kept" for name in list(CASES)[4:])
    # Five words in each of two paragraphs are no long paragraph; code may stand in the answer.
    assert verdict(sample("a b c d e\n \nf g h i j"), STRICT) == "kept"
    assert verdict(replace(sample(), text="<think>a</think><answer>```\nx\n```</answer>"), STRICT) == "kept"


def test_task_without_a_verifier_passes():
    assert verdict(sample(score=Score(2.0, {"format": 1.0, "language": 1.0}, None)), STRICT) == "kept"


def test_copies_of_kept_samples_are_dropped():
    of_prompt = [replace(sample(), truncated=True), sample(index=1), sample(index=2), sample("other", index=3)]
    kept, removed = passing(of_prompt, STRICT)
    assert [one.index for one in kept] == [1, 3]
    assert removed == {"truncated": 1, "duplicate": 1}


def test_choice_per_prompt():
    samples = [
        sample(index=index, tokens=tokens, score=Score(value, GOOD.parts, None))
        for index, (tokens, value) in enumerate([(9, 1.0), (5, 3.0), (7, 2.0), (5, 3.0)])
    ]
    chosen = {name: [one.index for one in best(samples, 2, name)] for name in ("order", "score", "shortest", "longest")}
    assert chosen == {"order": [0, 1], "score": [1, 3], "shortest": [1, 3], "longest": [0, 2]}


def test_rows_keep_everything():
    of_prompt = [sample(), sample("b", 1, truncated=True, score=Score(math.nan, {"format": 1.0}, "crash"))]
    place, back = prompt_from_row(json.loads(json.dumps(prompt_to_row(12, of_prompt))))
    assert place == 12 and back[0] == of_prompt[0]
    assert (back[1].truncated, back[1].score.error, math.isnan(back[1].score.value)) == (True, "crash", True)


def test_stored_samples_of_parts_come_in_order(tmp_path):
    def store(folder: str, *places: int) -> None:
        path = tmp_path / folder / "samples" / f"from_{places[0]:08d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [prompt_to_row(place, [sample(prompt_id=f"p{place}")]) for place in places]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    store("part_0001", 0, 2)
    store("part_0002", 1, 3)
    store(".", 4)
    assert [of_prompt[0].prompt_id for of_prompt in read_samples(tmp_path).values()] == ["p0", "p1", "p2", "p3", "p4"]
    store("part_0003", 3)
    with pytest.raises(DataError, match="p3 was sampled before"):
        read_samples(tmp_path)
