"""Best-fit-decreasing packing of sequences into bins of equal capacity."""

import heapq
from collections import defaultdict
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
    return best_fit_bins(lengths, capacity)


def best_fit_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """best_fit() for lengths in [1, capacity]; 1.4 us an item at a capacity of 4,097 and 6 at 131,073."""
    bins: list[list[int]] = []
    # Bins by free space, and an integer whose bit s is set where there is one with space s: shifted by a length, its
    # lowest bit is the fullest bin that fits, however many there are.
    free: dict[int, list[int]] = defaultdict(list)
    present = 0
    for index in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        length = lengths[index]
        fitting = present >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            chosen = heapq.heappop(free[space])
            if not free[space]:
                present ^= 1 << space
        else:
            space, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        left = space - length
        if left:
            heapq.heappush(free[left], chosen)
            present |= 1 << left
    return bins
