"""What a rollout looked like, over all ranks: rewards and their parts, lengths, ends, reflection words."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1train.reward.base import Score
from r1train.rl.gather import gather_objects
from r1train.rl.reflection import REFLECTION_WORDS, reflection_counts
from r1train.rollout.types import Group

_PARTS = ("accuracy", "format", "language")
_LENGTH_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}


@dataclass
class RolloutSums:
    """Sums of one rank, or of several added up; parts: of graded samples; lengths: of every response, in tokens."""

    graded: int = 0
    groups: int = 0
    mixed_groups: int = 0
    reward: float = 0.0
    group_std: float = 0.0
    truncated: int = 0
    timeouts: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    words: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)

    def add(self, other: "RolloutSums") -> None:
        for name, value in vars(other).items():
            if name != "parts":
                vars(self)[name] += value
        self.add_parts(other.parts)

    def add_parts(self, parts: dict[str, float]) -> None:
        """Not a Counter, whose sums drop what is not above 0: parts may be penalties."""
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value


def rollout_statistics(groups: list[Group], scores: list[Score]) -> dict[str, float]:
    """Means over all samples of all data-parallel ranks. Collective.

    reward and reward/<part>: over samples that could be graded; grader_errors: how many could not; grader_timeouts:
    how many are wrong since their verifier ran out of time, memory or depth; response_tokens and its quantiles,
    truncated_share, reflection_words (per response): over all samples. mixed_groups_share: groups whose rewards differ,
    the ones that give a gradient; zero_std_groups_share: the others; group_reward_std: mean over groups.
    """
    total = RolloutSums()
    for part in gather_objects(local_sums(groups, scores)):
        total.add(part)
    return as_gauges(total)


def local_sums(groups: list[Group], scores: list[Score]) -> RolloutSums:
    """This rank's groups and the scores of their samples, in order."""
    sums, rest = RolloutSums(groups=len(groups)), iter(scores)
    for group in groups:
        of_group = [next(rest) for _ in group.samples]
        rewards = [score.value for score in of_group if score.error is None]
        sums.graded += len(rewards)
        sums.reward += sum(rewards)
        sums.mixed_groups += len(set(rewards)) > 1
        # The std of equal rewards is 0 by rule: rounding of their mean would leave something else.
        sums.group_std += statistics.pstdev(rewards) if len(set(rewards)) > 1 else 0.0
        sums.timeouts += sum(score.timed_out for score in of_group)
        for score in of_group:
            if score.error is None:
                sums.add_parts(score.parts)
        for sample in group.samples:
            sums.truncated += sample.truncated
            sums.lengths.append(len(sample.tokens))
            sums.words.update(reflection_counts(sample.text))
    return sums


def as_gauges(total: RolloutSums) -> dict[str, float]:
    """The gauges of rollout_statistics from the sums over all ranks."""
    samples, graded, groups = len(total.lengths), max(total.graded, 1), max(total.groups, 1)
    lengths = sorted(total.lengths)
    names = dict.fromkeys((*_PARTS, *sorted(total.parts)))
    return {
        "reward": total.reward / graded,
        **{f"reward/{name}": total.parts.get(name, 0.0) / graded for name in names},
        "grader_errors": float(samples - total.graded),
        "grader_timeouts": float(total.timeouts),
        "group_reward_std": total.group_std / groups,
        "mixed_groups_share": total.mixed_groups / groups,
        "zero_std_groups_share": 1.0 - total.mixed_groups / groups,
        "response_tokens": sum(lengths) / samples,
        **{f"response_tokens/{name}": quantile(lengths, share) for name, share in _LENGTH_QUANTILES.items()},
        "truncated_share": total.truncated / samples,
        "reflection_words": sum(total.words.values()) / samples,
        **{f"reflection_words/{word}": total.words[word] / samples for word in REFLECTION_WORDS},
    }


def quantile(ordered: Sequence[int], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    place = max(-(-len(ordered) * share // 1) - 1, 0)
    return float(ordered[int(place)])
