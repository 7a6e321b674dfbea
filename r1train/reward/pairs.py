"""Preference pairs from samples: which of two responses is better, by a judge or by a rule (R1 section 2.2.2)."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from r1train.config.schema_samples import PairsStage
from r1train.data.preferences import scored_text
from r1train.reward.candidate import Candidate
from r1train.reward.chat_client import ChatClient, ask_all
from r1train.reward.format import extract_thinking
from r1train.reward.judge import comparison_question, read_comparison

# Simple known preferences, for tests and for a run without a judge: a response's merit, larger is better. "line": ends
# with a line break, as some cold-start styles do (data/cold_start.py), whatever the answer.
RULES: dict[str, Callable[[str], float]] = {
    "shorter": lambda response: -len(response.split()),
    "longer": lambda response: len(response.split()),
    "worked": lambda response: extract_thinking(response).count("="),
    "line": lambda response: response.endswith("\n"),
}


@dataclass(frozen=True)
class Pair:
    """Two responses of one prompt. difference: mean verdict, above 0 where the first is better; None without one."""

    first: Candidate
    second: Candidate
    difference: float | None = None

    @property
    def id(self) -> str:
        return f"{self.first.prompt_id}/{self.first.index}-{self.second.index}"

    @property
    def chosen(self) -> Candidate:
        assert self.difference is not None
        return self.first if self.difference > 0 else self.second

    @property
    def rejected(self) -> Candidate:
        return self.second if self.chosen is self.first else self.first

    @property
    def excess_tokens(self) -> int:
        """How much longer the chosen response is."""
        return self.chosen.tokens - self.rejected.tokens


def pairs_of_prompt(of_prompt: Sequence[Candidate], stage: PairsStage, *, seed: int) -> list[Pair]:
    """At most pairs_per_prompt pairs of finished responses whose scored texts differ; at random but always the same.

    A text without any word is in no pair: a line break alone may be what a rule prefers, and teaches nothing else.
    """
    usable = [one for one in of_prompt if not one.truncated and scored_text(one.text, stage.scored).strip()]
    possible = [
        Pair(first, second)
        for first, second in combinations(usable, 2)
        if scored_text(first.text, stage.scored) != scored_text(second.text, stage.scored)
    ]
    random.Random(f"{seed}/{of_prompt[0].prompt_id}").shuffle(possible)
    return possible[: stage.pairs_per_prompt]


def compared_by_rule(pairs: Sequence[Pair], rule: str) -> list[Pair]:
    """Every pair with the verdict of a rule of RULES: 2, 0 or -2."""
    merit = RULES[rule]
    compared = []
    for pair in pairs:
        gain = merit(pair.first.text) - merit(pair.second.text)
        compared.append(Pair(pair.first, pair.second, 2.0 * ((gain > 0) - (gain < 0))))
    return compared


def compared_by_judge(
    pairs: Sequence[Pair], stage: PairsStage, *, seed: int, store: Path
) -> tuple[list[Pair], dict[str, int]]:
    """Every pair with the mean of its verdicts, and the outcomes of all questions.

    Each pair is shown `judgements` times, half of them with the responses swapped (in random order, so that one more
    falls on either side when the number is odd). A question without a usable answer counts in no mean; a pair without
    any verdict has none.
    """
    assert stage.judge is not None
    questions: dict[str, str] = {}
    swapped: dict[str, bool] = {}
    for pair in pairs:
        texts = [scored_text(one.text, stage.scored) for one in (pair.first, pair.second)]
        sides = [bool(index % 2) for index in range(stage.judgements)]
        if random.Random(f"{seed}/{pair.id}").random() < 0.5:
            sides = [not side for side in sides]
        for index, side in enumerate(sides):
            key = f"{pair.id}#{index}"
            swapped[key] = side
            questions[key] = comparison_question(pair.first.question, *(texts[::-1] if side else texts))
    client = ChatClient(stage.judge)
    found, outcomes = ask_all(client, questions, lambda _, reply: read_comparison(reply), store=store)
    verdicts: dict[str, list[int]] = {}
    for key, verdict in found.items():
        verdicts.setdefault(key.rpartition("#")[0], []).append(-verdict if swapped[key] else verdict)
    means = {name: sum(values) / len(values) for name, values in verdicts.items()}
    return [Pair(pair.first, pair.second, means.get(pair.id)) for pair in pairs], outcomes


def clear_pairs(pairs: Sequence[Pair], least_difference: float) -> tuple[list[Pair], Counter[str]]:
    """Pairs whose |difference| exceeds the least one, and how many fell out and why."""
    kept: list[Pair] = []
    removed: Counter[str] = Counter()
    for pair in pairs:
        if pair.difference is None:
            removed["no verdict"] += 1
        elif abs(pair.difference) <= least_difference:
            removed["too close"] += 1
        else:
            kept.append(pair)
    return kept, removed


def balanced(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs whose chosen and rejected responses are as long on the whole, in their order.

    While chosen ones are longer in sum, the pair with the largest excess that does not overshoot goes (and the other
    way round); what remains is within one pair's excess of 0.
    """
    total = sum(pair.excess_tokens for pair in pairs)
    sign = 1 if total > 0 else -1
    dropped: set[int] = set()
    for place in sorted(range(len(pairs)), key=lambda item: -sign * pairs[item].excess_tokens):
        excess = sign * pairs[place].excess_tokens
        if 0 < excess <= sign * total:
            dropped.add(place)
            total -= pairs[place].excess_tokens
    return [pair for place, pair in enumerate(pairs) if place not in dropped]
