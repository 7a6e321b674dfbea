"""Groups with rewards -> packed micro-batches with everything the RL loss needs at each token."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from megatron.core import parallel_state

from r1train.config.schema_rl import OverlongConfig
from r1train.data.batch import PackedBatch, pack
from r1train.data.chat import Sample as TokenSample
from r1train.data.packing import best_fit
from r1train.model.replay import UNKNOWN
from r1train.rl.aggregate import Aggregation, GlobalCounts, token_weights
from r1train.rl.overlong import is_trained
from r1train.rollout.types import Group
from r1train.train.batches import packed_micro_batches
from r1train.train.forward import MicroBatch


@dataclass(frozen=True)
class TrainSample:
    """One response to train on: prompt and response ids, its advantage, the engine's logprobs of the response.

    routes, drawn_by: as in rollout.types.Sample.
    """

    id: str
    prompt: tuple[int, ...]
    response: np.ndarray
    advantage: float
    engine_logprobs: np.ndarray
    routes: np.ndarray | None = None
    drawn_by: tuple[tuple[int, int], ...] = ()


def train_samples(groups: list[Group], advantages: torch.Tensor, overlong: OverlongConfig) -> list[TrainSample]:
    """Samples of this rank in order, each with its advantage [S], without those that the overlong rule leaves out."""
    samples = [(group.prompt, sample) for group in groups for sample in group.samples]
    return [
        TrainSample(
            f"{prompt.id}/{sample.index}",
            prompt.token_ids,
            sample.tokens,
            advantages[position].item(),
            sample.logprobs,
            sample.routes,
            sample.drawn_by,
        )
        for position, (prompt, sample) in enumerate(samples)
        if is_trained(sample, overlong)
    ]


@dataclass(frozen=True)
class PackedSamples:
    """Micro-batches of this rank, and the counts over all ranks that their weights were made with.

    gauges: what is known of them before the update: trained_samples over all ranks, engine against trainer. Without
    any sample (rl.overlong.rule=mask) there are no micro-batches on any rank.
    """

    batches: list[MicroBatch]
    counts: GlobalCounts
    gauges: dict[str, float] = field(default_factory=dict)


EXTRAS = ("advantages", "engine_logprobs", "weights")


def pack_samples(
    samples: list[TrainSample], *, seq_length: int, pad_id: int, aggregation: Aggregation, max_response_tokens: int
) -> PackedSamples:
    """Pack one minibatch of this rank, which may be empty. Collective: every rank gets as many micro-batches.

    Extras per token: advantages, engine_logprobs, weights (the aggregation rule over the global counts).
    """
    counts = _global_counts(samples, max_response_tokens)
    rows = pack_rows(samples, counts, seq_length=seq_length, pad_id=pad_id, aggregation=aggregation)
    batches = packed_micro_batches(rows, seq_length=seq_length, pad_id=pad_id)
    gauges = {"trained_samples": float(counts.sequences)}
    return PackedSamples([_with_all_extras(batch) for batch in batches], counts, gauges)


def with_routes(
    batches: list[MicroBatch], samples: list[TrainSample], *, shape: tuple[int, int] | None
) -> list[MicroBatch]:
    """The micro-batches of pack_samples with the samples' experts: extra "routes", int16 [1, s, layers, k].

    shape: (expert layers of this stage, experts per token), None where the engine recorded none. UNKNOWN stands at
    padding and at the last token of each sample.
    """
    if shape is None:
        return batches
    seq_length = batches[0].tokens.shape[1]
    made = []
    bins = _bins(samples, seq_length)
    # Ranks with fewer rows than the fullest have rows of padding behind their own.
    for batch, items in zip(batches, [*bins, *[[]] * (len(batches) - len(bins))], strict=True):
        routes = torch.full((seq_length, *shape), UNKNOWN, dtype=torch.int16)
        start = 0
        for sample in (samples[item] for item in items):
            assert sample.routes is not None and sample.routes.shape[1:] == shape, (sample.id, shape)
            routes[start : start + len(sample.routes)] = torch.from_numpy(sample.routes.astype(np.int16))
            start += len(sample.prompt) + len(sample.response)
        made.append(replace(batch, extras={**batch.extras, "routes": routes[None]}))
    return made


def _bins(samples: list[TrainSample], seq_length: int) -> list[list[int]]:
    """Which samples share a row, in their order there."""
    lengths = [len(sample.prompt) + len(sample.response) for sample in samples]
    return best_fit(lengths, seq_length, names=[sample.id for sample in samples])


def pack_rows(
    samples: list[TrainSample], counts: GlobalCounts, *, seq_length: int, pad_id: int, aggregation: Aggregation
) -> list[PackedBatch]:
    """Rows of at most seq_length tokens, the samples placed best-fit; their weights are of the counts given."""
    token_samples = [_token_sample(sample, counts, aggregation) for sample in samples]
    bins = _bins(samples, seq_length)
    return [pack([token_samples[item] for item in one], seq_length=seq_length, pad_id=pad_id) for one in bins]


def _with_all_extras(batch: MicroBatch) -> MicroBatch:
    """A rank without samples has rows of padding only, which know no extras."""
    nothing = torch.zeros_like(batch.loss_mask)
    return replace(batch, extras={name: batch.extras.get(name, nothing) for name in EXTRAS})


def _global_counts(samples: list[TrainSample], max_response_tokens: int) -> GlobalCounts:
    totals = torch.tensor(
        [len(samples), sum(len(sample.response) for sample in samples)], device=torch.cuda.current_device()
    )
    torch.distributed.all_reduce(totals, group=parallel_state.get_data_parallel_group())
    sequences, tokens = totals.tolist()
    return GlobalCounts(sequences=sequences, tokens=tokens, max_response_tokens=max_response_tokens)


def _token_sample(sample: TrainSample, counts: GlobalCounts, aggregation: Aggregation) -> TokenSample:
    before, length = len(sample.prompt), len(sample.response)
    weights = token_weights(
        torch.zeros(length, dtype=torch.int64), torch.tensor([length]), counts=counts, aggregation=aggregation
    )

    def on_response(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros(before, dtype=np.float32), values.astype(np.float32)])

    return TokenSample(
        id=sample.id,
        tokens=np.concatenate([np.array(sample.prompt, dtype=np.int64), sample.response]),
        trained=on_response(np.ones(length)),
        extras={
            "advantages": on_response(np.full(length, sample.advantage)),
            "engine_logprobs": on_response(sample.engine_logprobs),
            "weights": on_response(weights.numpy()),
        },
    )


def with_extra(batches: list[MicroBatch], name: str, values: list[torch.Tensor]) -> list[MicroBatch]:
    """The micro-batches with one more extra [b, s] each; stages before the last have no values and no use for it."""
    if not values:
        return batches
    return [replace(batch, extras={**batch.extras, name: value}) for batch, value in zip(batches, values, strict=True)]
