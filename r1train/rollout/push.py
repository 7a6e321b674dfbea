"""The trainer's weights for an engine with its own copy: Hugging Face's names, on every rank, a few at a time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from r1train.config.schema_model import ModelConfig
from r1train.convert.fp8 import SCALE_SUFFIX, quantise_whole
from r1train.convert.live import hf_weights
from r1train.convert.names import AnyModel, Entry, Part, entries
from r1train.dist.comm import gathered
from r1train.errors import R1TrainError
from r1train.model.gpt import R1Model
from r1train.model.sharded import sharded_tensors
from r1train.rollout.checksum import Summing, Sums, difference

Named = tuple[str, Tensor]


class PushFailed(R1TrainError):
    """The engine does not hold the trainer's weights, so nothing may be sampled with it."""

    exit_code = 1


@dataclass(frozen=True)
class _Wanted:
    """One tensor to send. owner: the rank whose shards hold it."""

    part: Part
    dtype: torch.dtype
    owner: int


def served_entries(model: AnyModel) -> list[Entry]:
    """What an engine is sent: all but the MTP layers, which do not generate."""
    prefixes = (
        tuple(f"mtp.layers.{depth}." for depth in range(model.mtp_depth)) if isinstance(model, ModelConfig) else ()
    )
    return [entry for entry in entries(model) if not (prefixes and entry.key.startswith(prefixes))]


def full_weights(module: R1Model, model: AnyModel, *, dtype: torch.dtype) -> Iterator[Named]:
    """Every (name, tensor) of the whole model on every rank, in the table's order, one at a time. Collective.

    A tensor that another rank holds arrives by broadcast and lives until the caller lets it go; own ones may be views
    of the weights: read them, do not keep them. Values are `dtype`, those that the table keeps in fp32 are fp32.
    Raises PushFailed, on every rank, for tensors that no rank holds in full (tensor parallelism).
    """
    table = served_entries(model)
    held = dict(hf_weights(table, sharded_tensors(module.sharded_state_dict())))
    plan = _plan(table, set(held), dtype)
    rank, device = torch.distributed.get_rank(), torch.cuda.current_device()
    for one in plan:
        if one.owner == rank:
            tensor = held[one.part.name].detach().to(one.dtype).contiguous()
        else:
            tensor = torch.empty(one.part.shape, dtype=one.dtype, device=device)
        if torch.distributed.get_world_size() > 1:
            torch.distributed.broadcast(tensor, src=one.owner)
        yield one.part.name, tensor


def _plan(table: list[Entry], held: set[str], dtype: torch.dtype) -> list[_Wanted]:
    """Which rank sends what; every rank makes the same plan. Collective."""
    owners = {name: rank for rank, names in reversed(list(enumerate(gathered(held)))) for name in names}
    wanted = [(part, entry.fp32) for entry in table for part in entry.parts]
    missing = [part.name for part, _ in wanted if part.name not in owners]
    if missing:
        what = f"no rank holds {missing[0]} in full, nor {len(missing) - 1} more tensors"
        raise PushFailed(f"weights cannot be pushed: {what}. Fix: parallel.tp=1 where rollout.engine=vllm")
    return [_Wanted(part, torch.float32 if fp32 else dtype, owners[part.name]) for part, fp32 in wanted]


def buckets(weights: Iterable[Named], *, max_bytes: int) -> Iterator[list[Named]]:
    """The same tensors in order, in lists of at most max_bytes together; a larger tensor comes alone."""
    bucket: list[Named] = []
    used = 0
    for name, tensor in weights:
        size = tensor.numel() * tensor.element_size()
        if bucket and used + size > max_bytes:
            yield bucket
            bucket, used = [], 0
        bucket.append((name, tensor))
        used += size
    if bucket:
        yield bucket


def fp8_weights(weights: Iterable[Named], model: AnyModel) -> Iterator[Named]:
    """The same with what an FP8 checkpoint stores in FP8 (tools/export_hf.py --dtype fp8) in its blocks.

    Such a tensor becomes two: float8_e4m3fn values, and fp32 scales under its name with "_scale_inv". As in the export,
    scales are of the weight in the type that is sent.
    """
    names = {part.name for entry in served_entries(model) if entry.fp8 and not entry.fp32 for part in entry.parts}
    for name, tensor in weights:
        if name not in names:
            yield name, tensor
            continue
        values, scale = quantise_whole(tensor)
        yield name, values
        yield name + SCALE_SUFFIX, scale


class CountedWeights:
    """Passes weights on and sums them on the way, for the comparison with what the engine holds afterwards."""

    def __init__(self, weights: Iterable[Named]):
        self._weights = weights
        self._summing = Summing()

    def __iter__(self) -> Iterator[Named]:
        for name, tensor in self._weights:
            self._summing.add(name, tensor)
            yield name, tensor

    @property
    def sums(self) -> Sums:
        """Of everything passed on so far, as value_sums gives them."""
        return self._summing.sums


def check_version(held: list[int | None], policy_version: int) -> None:
    """Raise PushFailed unless every worker of the engine says that it holds this policy."""
    if held != [policy_version] * len(held):
        raise PushFailed(f"policy {policy_version} was asked for, but the engine holds {held}")


def check_sums(held: Sums, sent: Sums, *, policy_version: int) -> None:
    """Raise PushFailed unless the engine's weights are those that were sent."""
    wrong = difference(held, sent)
    if wrong:
        what = f"after the push of policy {policy_version} the engine's weights differ from the trainer's"
        raise PushFailed(
            f"{what} in {', '.join(wrong)} (layer/type). "
            "Fix: report this; rollout.engine=native with stale=keep until then"
        )
