"""Which corpus each sample comes from: a cycle that spreads the corpora evenly and keeps their shares exactly."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

# Longer cycles take seconds to lay out; weights of four digits fit.
_LONGEST_CYCLE = 100_000


@dataclass(frozen=True)
class Blend:
    """Which corpus each sample of a cycle takes, and how many samples that corpus gave before in the cycle.

    corpus, before: int64 [cycle]; per_cycle: int64 [corpora].
    """

    corpus: np.ndarray
    before: np.ndarray
    per_cycle: np.ndarray

    def at(self, index: int) -> tuple[int, int]:
        """(corpus of sample `index` of the stream without end, how many samples that corpus gave before it)."""
        cycle, place = divmod(index, len(self.corpus))
        corpus = int(self.corpus[place])
        return corpus, cycle * int(self.per_cycle[corpus]) + int(self.before[place])


def blend(weights: list[float]) -> Blend:
    """Spread corpora over a cycle: each sample goes to the corpus that is owed most, ties to the first.

    The cycle is the shortest that holds every share in whole samples, so n cycles hold exactly n times the share. Where
    it would be longer than 100,000 samples, shares are rounded to whole samples of 100,000, each corpus at least one.
    weights: above 0, read as the decimals they are written as.
    """
    quotas = _quotas(weights)
    cycle, owed, given = sum(quotas), [0] * len(quotas), [0] * len(quotas)
    corpus, before = np.zeros(cycle, dtype=np.int64), np.zeros(cycle, dtype=np.int64)
    for place in range(cycle):
        owed = [debt + quota for debt, quota in zip(owed, quotas, strict=True)]
        chosen = owed.index(max(owed))
        corpus[place], before[place] = chosen, given[chosen]
        owed[chosen] -= cycle
        given[chosen] += 1
    assert given == quotas
    return Blend(corpus=corpus, before=before, per_cycle=np.array(quotas))


def _quotas(weights: list[float]) -> list[int]:
    """Samples per corpus in a cycle."""
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    cycle = math.lcm(*(share.denominator for share in shares))
    if cycle <= _LONGEST_CYCLE:
        return [int(share * cycle) for share in shares]
    return [max(1, round(share * _LONGEST_CYCLE)) for share in shares]
