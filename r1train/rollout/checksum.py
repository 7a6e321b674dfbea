"""Sums over the bits of weights: equal for equal weights however an engine cuts, joins or orders its tensors."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_LAYER = re.compile(r"\blayers\.(\d+)\.")
# Odd constants of a multiplicative hash; products wrap around, as int64 does.
_MIX_1, _MIX_2 = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9
_CHUNK = 2**24  # values looked at together: what the sum holds for a moment

Sums = dict[str, int]
# Of one rank of an engine: name of a tensor -> (its key in Sums, its own sum).
TensorSums = dict[str, tuple[str, int]]


def value_sums(weights: Iterable[tuple[str, Tensor]]) -> Sums:
    """(name, tensor) -> one hash sum per layer and type, "outer" for what belongs to no layer.

    A sum does not change when tensors of a layer are joined, split, transposed or padded with zeros, as engines do with
    theirs; it does when any value changes, is missing, comes twice, or goes to another layer. Two values of one layer
    that change places are not seen: the engine's log-probabilities show those.
    """
    summing = Summing()
    for name, tensor in weights:
        summing.add(name, tensor)
    return summing.sums


class Summing:
    """value_sums of weights that come one by one; the device is asked once, at the end."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        key = _key(name, tensor)
        total = _hash_sum(tensor.detach())
        self._sums[key] = self._sums[key] + total if key in self._sums else total

    @property
    def sums(self) -> Sums:
        """Of everything so far."""
        totals = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        return {key: total for key, total in zip(self._sums, totals, strict=True) if total != 0}


def tensor_sums(weights: Iterable[tuple[str, Tensor]]) -> TensorSums:
    """(name, tensor) -> each tensor's own sum, for joined_sums; the device is asked once."""
    found = {name: (_key(name, tensor), _hash_sum(tensor.detach())) for name, tensor in weights}
    totals = torch.stack([total for _, total in found.values()]).tolist() if found else []
    return {name: (key, total) for (name, (key, _)), total in zip(found.items(), totals, strict=True)}


def joined_sums(ranks: list[TensorSums]) -> Sums:
    """value_sums of the whole weights that an engine's ranks hold together; each gives the sums of its own tensors.

    A tensor with the same sum on all of them is there whole on each (norms, routers, latent projections) and counts
    once. Any other is cut, and the sums of its cuts add up to that of the whole: hashes are of single values. So a cut
    that is missing, comes twice or is another layer's, and a whole tensor that is wrong on some ranks, still show; two
    ranks that hold each other's cuts do not, as values that change places within a layer do not (value_sums).
    """
    joined: dict[str, int] = {}
    for name in dict.fromkeys(name for rank in ranks for name in rank):
        parts = [rank[name] for rank in ranks if name in rank]
        key = parts[0][0]
        is_whole = len(parts) == len(ranks) and len(set(parts)) == 1
        joined[key] = joined.get(key, 0) + sum(total for _, total in (parts[:1] if is_whole else parts))
    return {key: _wrapped(total) for key, total in joined.items() if _wrapped(total) != 0}


def difference(found: Sums, expected: Sums) -> list[str]:
    """Keys of the sums that are not the same, sorted."""
    return sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))


def _key(name: str, tensor: Tensor) -> str:
    """layer/type, "outer" for what belongs to no layer."""
    layer = _LAYER.search(name)
    return f"{layer.group(1) if layer else 'outer'}/{str(tensor.dtype).removeprefix('torch.')}"


def _wrapped(total: int) -> int:
    """As int64 adds up."""
    return (total + 2**63) % 2**64 - 2**63


def _hash_sum(tensor: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    bits = tensor.contiguous().flatten().view(_BITS[tensor.element_size()])
    for part in bits.split(_CHUNK):
        mixed = part.long() * _MIX_1
        # A bit pattern of 0 hashes to 0, so padding counts nothing.
        total += ((mixed ^ (mixed >> 29)) * _MIX_2).sum()
    return total
