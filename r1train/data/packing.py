"""Best-fit-decreasing packing of sequences into bins of equal capacity."""

import bisect
from collections.abc import Sequence

from r1train.errors import DataError

_NAMED = 5


def best_fit(lengths: Sequence[int], capacity: int, *, names: Sequence[str]) -> list[list[int]]:
    """Bins of item indices: longest item first, each into the fullest bin that still holds it.

    Invariants: every index once; no bin above capacity; any two bins together exceed capacity (so at most twice the
    optimum); the number of bins depends on the multiset of lengths only; equal lengths are placed in the order given.
    Raises DataError naming the items longer than capacity.
    """
    assert all(length > 0 for length in lengths)
    too_long = [index for index, length in enumerate(lengths) if length > capacity]
    if too_long:
        named = ", ".join(f"{names[index]} ({lengths[index]})" for index in too_long[:_NAMED])
        more = f" and {len(too_long) - _NAMED} more" if len(too_long) > _NAMED else ""
        raise DataError(
            f"{len(too_long)} of {len(lengths)} examples are longer than {capacity} tokens: {named}{more}. "
            "Fix: a larger seq_length, or remove them"
        )
    bins: list[list[int]] = []
    # (free space, bin), sorted: the first one with enough space is the fullest that fits.
    free: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = bisect.bisect_left(free, (lengths[index], -1))
        if place == len(free):
            space, chosen = capacity, len(bins)
            bins.append([])
        else:
            space, chosen = free.pop(place)
        bins[chosen].append(index)
        bisect.insort(free, (space - lengths[index], chosen))
    return bins
