"""Dynamic sampling (DAPO, arXiv 2503.14476 section 3.2): ask prompts until enough groups have differing rewards."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from r1train.config.schema_rl import DynamicSamplingConfig
from r1train.reward.base import Score
from r1train.rollout.types import Group


@dataclass(frozen=True)
class ScoredGroup:
    """A group with the scores of its samples. place: of its prompt among all that this rollout asked, 0-based.

    In partial rollouts it is the place in the whole stream of prompts.
    """

    place: int
    group: Group
    scores: tuple[Score, ...]

    @property
    def is_mixed(self) -> bool:
        """Whether some of the samples that could be graded are correct and others are not (DAPO eq. 11).

        The accuracy says so, not what length, format or language add to it. Without an accuracy (reward models alone)
        the rewards have to differ.
        """
        graded = [score for score in self.scores if score.error is None]
        return len({score.parts.get("accuracy", score.value) for score in graded}) > 1


@dataclass(frozen=True)
class Rollout:
    """chosen: this rank's groups to train on; generated: all of them, chosen or not, both in order of their place.

    asked: prompts taken from the stream over all ranks. gauges: what sampling did, over all ranks.
    """

    chosen: list[ScoredGroup]
    generated: list[ScoredGroup]
    asked: int
    gauges: dict[str, float]


Ask = Callable[[int, int, int], list[ScoredGroup]]
Gather = Callable[[list[tuple[int, bool]]], list[list[tuple[int, bool]]]]


def collect(ask: Ask, gather: Gather, *, wanted: int, cfg: DynamicSamplingConfig) -> Rollout:
    """Ask until `wanted` groups over all ranks may be kept, or max_tries is reached. Collective over all ranks.

    ask(start, count, attempt): this rank's share of the prompts at places [start, start + count) of this rollout.
    gather: what every data-parallel rank brings. Kept are the first mixed groups in order of the prompts; where the
    tries did not bring enough, the first others fill up, so that a rollout always has its size. What is chosen depends
    on the order of prompts only, not on how they are spread over ranks.
    """
    generated: list[ScoredGroup] = []
    kept_by_rule: dict[int, bool] = {}
    attempt = 0
    while sum(kept_by_rule.values()) < wanted and attempt < cfg.max_tries:
        missing = wanted - sum(kept_by_rule.values())
        answered = ask(len(kept_by_rule), prompts_to_ask(missing, cfg.oversample), attempt)
        generated += answered
        flags = [(one.place, cfg.keep == "all" or one.is_mixed) for one in answered]
        kept_by_rule |= dict(pair for part in gather(flags) for pair in part)
        attempt += 1
    places = choose(kept_by_rule, wanted)
    filled = sum(not kept_by_rule[place] for place in places)
    return Rollout(
        chosen=[one for one in generated if one.place in places],
        generated=generated,
        asked=len(kept_by_rule),
        gauges={
            "sampling/tries": float(attempt),
            "sampling/prompts": float(len(kept_by_rule)),
            "sampling/unused_groups": float(len(kept_by_rule) - len(places)),
            "sampling/filled_groups": float(filled),
        },
    )


def prompts_to_ask(missing: int, oversample: float) -> int:
    """Prompts of the next try. Rounded before the ceiling: 1.1 * 10 is a little more than 11."""
    return math.ceil(round(missing * oversample, 6))


def choose(kept_by_rule: dict[int, bool], wanted: int) -> set[int]:
    """Places of the groups to train on: the first that the rule keeps, then the first others, `wanted` in all."""
    in_order = sorted(kept_by_rule, key=lambda place: (not kept_by_rule[place], place))
    return set(in_order[:wanted])
