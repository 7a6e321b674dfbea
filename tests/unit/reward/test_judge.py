"""Reading a judge's replies, and pairs from its verdicts: swapped positions, means, thresholds, balanced lengths."""

from dataclasses import replace
from pathlib import Path

import pytest

from r1train.config.schema_samples import JudgeConfig, PairsStage
from r1train.reward import pairs as pairs_module
from r1train.reward.base import Score
from r1train.reward.candidate import Candidate
from r1train.reward.judge import read_comparison, read_correctness, read_rewriting
from r1train.reward.pairs import Pair, balanced, clear_pairs, compared_by_judge, compared_by_rule, pairs_of_prompt

STAGE = PairsStage(
    name="pairs",
    samples_from="x",
    prefer="judge",
    scored="summary",
    pairs_per_prompt=1,
    judge=JudgeConfig(url="http://127.0.0.1:1/v1", model="m"),
)


def candidate(index: int, summary: str, *, tokens: int = 5, prompt_id: str = "p", thinking: str = "t") -> Candidate:
    return Candidate(
        prompt_id=prompt_id,
        task="general",
        question="why?",
        index=index,
        text=f"<think>{thinking}</think>{summary}",
        tokens=tokens,
        truncated=False,
        policy_version=1,
        score=Score(1.0, {"format": 1.0}, None),
    )


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"analysis": "same", "verdict": "correct"}', True),
        ('Here:\n```json\n{"analysis": "{x}", "verdict": "incorrect"}\n```', False),
        ('{"verdict": "maybe"}', None),
        ('{"verdict": ["correct"]}', None),
        ("correct", None),
        ("[1]", None),
    ],
)
def test_correctness(reply, verdict):
    assert read_correctness(reply) is verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("so [[A>>B]]", 2),
        ("[[A>B]]", 1),
        ("[[A=B]] yes [[A=B]]", 0),
        ("[[B>>A]]", -2),
        ("A>B", None),
        ("[[A>B]] [[B>A]]", None),
    ],
)
def test_comparison(reply, verdict):
    assert read_comparison(reply) == verdict


def test_rewriting_keeps_layout_and_answer():
    text = "<think>so it is</think><answer>7</answer>"
    assert read_rewriting(f" {text}\n", answer="7") == text
    assert read_rewriting(text, answer="8") is None
    assert read_rewriting("It is 7", answer="7") is None


def test_pairs_differ_in_what_is_scored():
    samples = [candidate(0, "same"), candidate(1, "same", thinking="other"), candidate(2, "different")]
    assert {pair.id for pair in pairs_of_prompt(samples, replace(STAGE, pairs_per_prompt=9), seed=1)} == {
        "p/0-2",
        "p/1-2",
    }
    whole = replace(STAGE, scored="response", pairs_per_prompt=9)
    assert len(pairs_of_prompt(samples, whole, seed=1)) == 3
    assert len(pairs_of_prompt(samples, STAGE, seed=1)) == 1
    assert pairs_of_prompt([replace(one, truncated=True) for one in samples], whole, seed=1) == []
    # A row of pairs.jsonl without words would be malformed to the reward model that reads it.
    assert pairs_of_prompt([samples[0], replace(samples[1], text="\n")], whole, seed=1) == []


def answer_by(monkeypatch: pytest.MonkeyPatch, judge) -> list[str]:
    """Put a judge (first text, second text) -> reply, or None for no answer, in the place of the endpoint."""
    asked: list[str] = []

    def ask_all(_client, questions, read, *, store: Path):
        values = {}
        for key, question in questions.items():
            asked.append(question)
            first, _, second = question.partition("Response A:\n")[2].partition("\n\nResponse B:\n")
            reply = judge(first.strip(), second.strip())
            if reply is not None:
                values[key] = read(key, reply)
        return values, {"ok": len(values)}

    monkeypatch.setattr(pairs_module, "ask_all", ask_all)
    return asked


def test_a_biased_judge_cancels_out(monkeypatch, tmp_path):
    """One that always prefers the first place says nothing; one that knows what is better is heard in both places."""
    pair = Pair(candidate(0, "bad"), candidate(1, "good"))
    asked = answer_by(monkeypatch, lambda first, second: "[[A>>B]]")
    (found,), outcomes = compared_by_judge([pair], STAGE, seed=1, store=tmp_path / "s")
    assert (found.difference, outcomes, len(asked), len(set(asked))) == (0.0, {"ok": 4}, 4, 2)
    answer_by(monkeypatch, lambda first, second: "[[A>>B]]" if first == "good" else "[[B>A]]")
    (found,), _ = compared_by_judge([pair], STAGE, seed=1, store=tmp_path / "s")
    assert found.difference == -1.5 and found.chosen.index == 1 and found.rejected.index == 0


def test_pairs_without_a_verdict_are_counted(monkeypatch, tmp_path):
    pairs = [
        Pair(candidate(0, "a"), candidate(1, "b")),
        Pair(candidate(0, "c", prompt_id="q"), candidate(1, "d", prompt_id="q")),
    ]
    answer_by(monkeypatch, lambda first, second: None if "c" in (first, second) else "[[A=B]]")
    compared, _ = compared_by_judge(pairs, STAGE, seed=1, store=tmp_path / "s")
    kept, removed = clear_pairs(compared, 1.0)
    assert kept == [] and removed == {"no verdict": 1, "too close": 1}


def test_threshold_is_exclusive():
    pairs = [Pair(candidate(0, "a"), candidate(1, "b"), difference) for difference in (1.0, 1.25, -1.0, -2.0)]
    kept, removed = clear_pairs(pairs, 1.0)
    assert [pair.difference for pair in kept] == [1.25, -2.0] and removed == {"too close": 2}


def test_rules():
    pairs = [Pair(candidate(0, "a b c"), candidate(1, "a"))]
    assert [one.difference for one in compared_by_rule(pairs, "shorter")] == [-2.0]
    assert [one.difference for one in compared_by_rule(pairs, "longer")] == [2.0]
    assert [one.difference for one in compared_by_rule(pairs, "worked")] == [0.0]
    assert [one.difference for one in compared_by_rule(pairs, "line")] == [0.0]
    broken = [Pair(candidate(0, "a"), candidate(1, "a\n"))]
    assert [one.difference for one in compared_by_rule(broken, "line")] == [-2.0]


def test_lengths_are_balanced():
    pairs = [
        Pair(candidate(0, "a", tokens=long, prompt_id=str(n)), candidate(1, "b", tokens=10, prompt_id=str(n)), 2.0)
        for n, long in enumerate([30, 25, 12, 8, 5])  # excess 20, 15, 2, -2, -5: 30 in all
    ]
    kept = balanced(pairs)
    assert [pair.excess_tokens for pair in kept] == [15, -2, -5]  # the 15 would overshoot
    mirrored = [Pair(pair.first, pair.second, -2.0) for pair in pairs]
    assert sum(pair.excess_tokens for pair in balanced(mirrored)) == -8
    assert balanced(kept[:0]) == []
