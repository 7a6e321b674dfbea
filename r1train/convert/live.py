"""A model in memory under Hugging Face's names, from its shards: what a push of weights into an engine sends.

A rank sees the shards that it holds (sharded_tensors of model/sharded.py: key, global_offset, data). A Hugging Face
tensor comes out where these shards hold all of its rows; gathering over tensor-parallel ranks comes before this.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from r1train.convert.names import Entry


class Shard(Protocol):
    """A box of one of our tensors, as megatron-core's ShardedTensor describes it.

    data has no leading axes of size 1 where the key stands for all experts (prepend_axis_num 1).
    """

    key: str
    global_offset: tuple[int, ...]
    data: torch.Tensor


@dataclass(frozen=True)
class _Rows:
    start: int
    data: torch.Tensor


def hf_weights(entries: Iterable[Entry], shards: Iterable[Shard]) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, tensor) of everything that these shards hold in full, in the order of the table.

    Under expert and pipeline parallelism every rank yields its own experts and layers; together they yield all. The
    tensors are views of the shards where one shard holds all rows, else copies. Copies of embedding and head for MTP
    layers are not repeated.
    """
    held: dict[tuple[str, int | None], list[_Rows]] = defaultdict(list)
    for shard in shards:
        experts = len(shard.global_offset) - shard.data.dim()
        expert = shard.global_offset[0] if experts else None
        held[shard.key, expert].append(_Rows(shard.global_offset[experts], shard.data))
    for entry in entries:
        rows = held.get((entry.key, entry.expert), [])
        for number, part in enumerate(entry.parts):
            pieces = [_piece(rows, run.ours, run.count, part.shape[1:]) for run in entry.runs() if run.part == number]
            whole = [piece for piece in pieces if piece is not None]
            if len(whole) == len(pieces):
                yield part.name, whole[0] if len(whole) == 1 else torch.cat(whole)


def _piece(rows: list[_Rows], start: int, count: int, row_shape: tuple[int, ...]) -> torch.Tensor | None:
    """Rows start to start + count, or None where the shards do not hold all of them in full width."""
    found, position = [], start
    for shard in sorted(rows, key=lambda shard: shard.start):
        end = shard.start + len(shard.data)
        if tuple(shard.data.shape[1:]) != row_shape:
            return None
        if shard.start <= position < end:
            stop = min(end, start + count)
            found.append(shard.data[position - shard.start : stop - shard.start])
            position = stop
        if position == start + count:
            return found[0] if len(found) == 1 else torch.cat(found)
    return None
