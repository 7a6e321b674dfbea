"""One sample that may become training data: its text, its scores and where it comes from; JSON lines of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from r1train.reward.base import Score
from r1train.rollout.types import Group


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One response to one prompt. index: within its prompt; tokens: how many; policy_version: steps of its weights."""

    prompt_id: str
    task: str
    question: str
    index: int
    text: str
    tokens: int
    truncated: bool
    policy_version: int
    score: Score

    @property
    def id(self) -> str:
        return f"{self.prompt_id}/{self.index}"


def candidates_of(group: Group, scores: Sequence[Score]) -> list[Candidate]:
    """Every sample of a group, with its score."""
    return [
        Candidate(
            prompt_id=group.prompt.id,
            task=group.prompt.task,
            question=group.prompt.question,
            index=sample.index,
            text=sample.text,
            tokens=len(sample.tokens),
            truncated=sample.truncated,
            policy_version=sample.policy_version,
            score=score,
        )
        for sample, score in zip(group.samples, scores, strict=True)
    ]


def prompt_to_row(place: int, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """All candidates of one prompt (at least one) as a JSON-ready dict; place: of the prompt in the order asked."""
    first = candidates[0]
    return {
        "place": place,
        "prompt": {"id": first.prompt_id, "task": first.task, "question": first.question},
        "samples": [
            {
                "index": one.index,
                "text": one.text,
                "tokens": one.tokens,
                "truncated": one.truncated,
                "policy_version": one.policy_version,
                "score": one.score.to_row(),
            }
            for one in candidates
        ],
    }


def prompt_from_row(row: dict[str, Any]) -> tuple[int, list[Candidate]]:
    """Inverse of prompt_to_row. Raises KeyError when a field is absent."""
    prompt = row["prompt"]
    return row["place"], [
        Candidate(
            prompt_id=prompt["id"],
            task=prompt["task"],
            question=prompt["question"],
            score=Score.from_row(one["score"]),
            **{name: one[name] for name in ("index", "text", "tokens", "truncated", "policy_version")},
        )
        for one in row["samples"]
    ]
