"""How a decode step is computed: as in training, or with static shapes, which a GPU replays as a CUDA graph.

A kernel launch costs the host some microseconds and a step of a small model has a thousand of them, so a GPU mostly
waits; a graph is launched once. Both kinds run the same `Decoder.step`.
"""

import logging
from functools import partial
from typing import Protocol

import torch
from megatron.core import parallel_state

from r1train.data.tokenizer import Tokenizer
from r1train.dist import pipeline
from r1train.model.decode import empty_cache, next_token_logits, rotation_table, stage_forward
from r1train.model.decode_experts import FeedForward, dispatched, every_expert, every_expert_pays
from r1train.model.decode_parallel import from_first_tensor_rank
from r1train.model.decode_slots import Slots
from r1train.model.gpt import R1Model
from r1train.model.token_cache import TokenCache
from r1train.rollout.engine import SamplingParams
from r1train.rollout.graphs import Graphs, Runner
from r1train.rollout.live import LiveRows, in_blocks
from r1train.rollout.sampling import choose_tokens

_log = logging.getLogger(__name__)

FEWEST_ROWS = 8  # below, a step costs what reading the weights costs
# A cache up to this size is made in full at once, and kept with its graphs from one call to the next.
KEPT_BYTES = 4 << 30


class Decoder:
    """The model's forward over a cache, through all pipeline stages, and the draw of the next token."""

    def __init__(self, model: R1Model, tokenizer: Tokenizer, *, record_routes: bool):
        self.model = model
        self.device = next(model.parameters()).device
        self.record_routes = record_routes
        # Query heads of this rank.
        self.heads = model.config.num_attention_heads // parallel_state.get_tensor_model_parallel_world_size()
        self.rotation = rotation_table(model, 1)
        self._eos_id = tokenizer.eos_id

    def cover(self, capacity: int) -> None:
        """Know the rotation of so many slots."""
        if len(self.rotation) < capacity:
            self.rotation = rotation_table(self.model, in_blocks(capacity))

    def empty_cache(self, sequences: int, capacity: int) -> TokenCache:
        """Room for so many tokens of so many sequences."""
        return empty_cache(
            self.model, sequences=sequences, capacity=capacity, device=self.device, routes=self.record_routes
        )

    def slots(self, positions: torch.Tensor, *, visible: int) -> Slots:
        """Where tokens at positions [b, s] stand that see at the most `visible` slots."""
        self.cover(visible)
        return Slots.at(positions, self.rotation, visible=visible)

    def forward(
        self, tokens: torch.Tensor, cache: TokenCache, slots: Slots, feed_forward: FeedForward
    ) -> torch.Tensor | None:
        """Tokens [b, s] through all pipeline stages; hidden [s, b, h] on the last, None elsewhere."""
        config = self.model.config
        inputs = tokens
        if not self.model.pre_process:
            inputs = pipeline.receive((tokens.shape[1], tokens.shape[0], config.hidden_size), config.params_dtype)
        hidden = stage_forward(self.model, inputs, cache=cache, slots=slots, feed_forward=feed_forward)
        if self.model.post_process:
            return hidden
        pipeline.send(hidden)
        return None

    def step(self, live: LiveRows, params: SamplingParams, *, visible: int, feed_forward: FeedForward) -> None:
        """Compute every row's pending token and draw the next one; changes `live` in place and knows no host state."""
        # Rows that nobody waits for go on over their last slot; nobody reads what they produce.
        positions = live.cache.lengths.clamp(max=visible - 1)
        slots = self.slots(positions[:, None], visible=visible)
        hidden = self.forward(live.pending[:, None], live.cache, slots, feed_forward)
        live.cache.lengths.add_(1)
        self.draw(live, None if hidden is None else next_token_logits(self.model, hidden[0]), params)

    def draw(self, live: LiveRows, logits: torch.Tensor | None, params: SamplingParams) -> None:
        """The next token of every row, known to every pipeline stage and tensor-parallel rank."""
        rows = len(live.age)
        if logits is None:
            tokens = torch.zeros(rows, dtype=torch.int64, device=self.device)
            logprobs = torch.zeros(rows, dtype=torch.float32, device=self.device)
        else:
            place = live.age.clamp(max=params.max_response_tokens - 1)[:, None]
            noise = live.noise.gather(1, place)[:, 0]
            tokens, logprobs = choose_tokens(logits, noise, temperature=params.temperature, top_p=params.top_p)
        tokens, logprobs = (pipeline.from_last(from_first_tensor_rank(one)) for one in (tokens, logprobs))
        live.take(tokens, logprobs, eos_id=self._eos_id)


class Steps(Protocol):
    """shrink_share: free rows are given up once no more than one row in so many has a job."""

    shrink_share: int

    def rows_for(self, samples: int) -> int:
        """Rows to decode so many samples with."""

    def feed_forward(self, tokens: int) -> FeedForward:
        """How a forward of so many tokens outside of `run` computes its experts."""

    def open(self, filled: LiveRows, *, slots: int) -> LiveRows:
        """Rows to go on with, which hold these. slots: what the longest sample of the call will take of a cache."""

    def run(self, live: LiveRows, params: SamplingParams, count: int) -> None:
        """So many steps; the cache has room for them."""

    def close(self) -> None:
        """Give up what is not worth keeping until the next call."""


class TrainingSteps:
    """Every step as a forward in training runs: any layout, launched kernel by kernel."""

    shrink_share = 2

    def __init__(self, decoder: Decoder):
        self._decoder = decoder

    def rows_for(self, samples: int) -> int:
        return max(samples, 1)

    def feed_forward(self, tokens: int) -> FeedForward:
        del tokens
        return dispatched

    def open(self, filled: LiveRows, *, slots: int) -> LiveRows:
        del slots
        return filled

    def run(self, live: LiveRows, params: SamplingParams, count: int) -> None:
        for _ in range(count):
            self._decoder.step(live, params, visible=live.visible(), feed_forward=dispatched)
            live.advance(1)

    def close(self) -> None:
        pass


class StaticSteps:
    """Steps of few shapes, on tensors that stay where they are: rows and visible slots come in sizes.

    Sizes of rows are powers of two, and the batch shrinks to a quarter at a time; what is beyond the samples is
    computed and dropped.
    """

    shrink_share = 4

    def __init__(self, decoder: Decoder, runner: Runner, *, largest: int):
        """runner: replays what it has captured, or computes it anew. largest: number of rows."""
        self._decoder = decoder
        self._runner = runner
        self._largest = largest
        self._kept: LiveRows | None = None
        self._weights: tuple[int, ...] = ()

    def rows_for(self, samples: int) -> int:
        return min(max(FEWEST_ROWS, 1 << max(samples - 1, 0).bit_length()), max(self._largest, 1))

    def feed_forward(self, tokens: int) -> FeedForward:
        return every_expert if every_expert_pays(self._decoder.model.config, tokens) else dispatched

    def open(self, filled: LiveRows, *, slots: int) -> LiveRows:
        # Where the weights lie, once per call: what writes into them keeps the graphs, what moves them does not.
        model = self._decoder.model
        self._weights = tuple(tensor.data_ptr() for part in (model.parameters(), model.buffers()) for tensor in part)
        rows, budget = len(filled.jobs), filled.tokens.shape[1]
        kept = self._room(self.rows_for(rows), budget, in_blocks(slots), filled.cache)
        kept.clear()
        live = kept.first(self.rows_for(rows), budget)
        live.refill(list(range(rows)), filled)
        return live

    def run(self, live: LiveRows, params: SamplingParams, count: int) -> None:
        self._decoder.cover(live.cache.capacity)
        places = (tensor.data_ptr() for tensor in [*live.tensors(), self._decoder.rotation])
        if self._kept is not None and self._kept.cache.entries.data_ptr() != live.cache.entries.data_ptr():
            self._kept = None  # the cache has grown, elsewhere
        self._runner.bind((*self._weights, *places))
        visible = sized(live.visible(count), live.cache.capacity)
        key = (len(live.jobs), visible, live.tokens.shape[1], params.temperature, params.top_p)
        step = partial(self._decoder.step, live, params, visible=visible, feed_forward=every_expert)
        self._runner.run(key, step, count)
        live.advance(count)

    def close(self) -> None:
        if self._kept is None or self._kept.cache.nbytes > KEPT_BYTES:
            self._kept = None
            self._runner.bind(())

    def _room(self, rows: int, budget: int, slots: int, like: TokenCache) -> LiveRows:
        """Rows for at least so much: those of the call before, or new ones. A cache that would be large grows later."""
        kept = self._kept
        if kept is not None:
            if rows <= len(kept.jobs) and budget <= kept.tokens.shape[1] and slots <= kept.cache.capacity:
                return kept
            rows, budget = max(rows, len(kept.jobs)), max(budget, kept.tokens.shape[1])
            slots = max(slots, kept.cache.capacity)
        if like.nbytes * rows * slots > KEPT_BYTES * len(like.lengths) * like.capacity:
            slots = like.capacity
        self._kept = kept = None  # before the new one is made
        self._kept = LiveRows.blank(rows, budget, self._decoder.empty_cache(rows, slots))
        return self._kept


def sized(slots: int, capacity: int) -> int:
    """The next of few sizes: blocks, in steps of a quarter at the least; never more than `capacity`."""
    size = in_blocks(1)
    while size < slots:
        size = in_blocks(max(size + 1, size * 5 // 4))
    return min(size, capacity)


def choose_steps(decoder: Decoder, *, batch_size: int, cuda_graphs: bool) -> Steps:
    """CUDA graphs where they are wanted and can be; says which it is and why, once per engine."""
    obstacle = None if cuda_graphs else "rollout.cuda_graphs is false"
    obstacle = obstacle or _obstacle(decoder, batch_size)
    if obstacle is None:
        _log.info("generation: CUDA graphs, up to %d rows", batch_size)
        return StaticSteps(decoder, Graphs(), largest=batch_size)
    _log.info("generation: no CUDA graphs: %s", obstacle)
    return TrainingSteps(decoder)


def _obstacle(decoder: Decoder, rows: int) -> str | None:
    """Why a step of so many rows cannot be a graph, or had better not be."""
    if decoder.device.type != "cuda":
        return f"the model is on {decoder.device.type}"
    sizes = {
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "expert": parallel_state.get_expert_model_parallel_world_size(),
    }
    split = [f"{name} parallelism of {size}" for name, size in sizes.items() if size > 1]
    if split:
        return f"the layout has {' and '.join(split)}"
    if not every_expert_pays(decoder.model.config, rows):
        return f"with {rows} rows every expert for every row would cost more than the dispatcher"
    return None
