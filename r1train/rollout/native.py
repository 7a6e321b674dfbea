"""Generation on the training weights themselves: no second copy, nothing to synchronise."""

from collections import deque
from dataclasses import dataclass, field

import torch

from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.dist import pipeline
from r1train.dist.comm import largest_counts
from r1train.model.decode import empty_cache, next_token_logits, rotary_angles, stage_forward
from r1train.model.gpt import R1Model
from r1train.model.replay import recording
from r1train.model.token_cache import TokenCache
from r1train.rollout.engine import SamplingParams, Watcher
from r1train.rollout.live import Job, LiveRows, in_blocks
from r1train.rollout.sampling import choose_tokens, noise_of
from r1train.rollout.types import Group, Sample

# Rows are refilled once so many of them (one in REFILL_SHARE) are free: each refill is a forward that all ranks join.
REFILL_SHARE = 8


@dataclass
class _Run:
    """One call of generate. waiting: samples that have no row yet; samples: the finished ones, [prompt][index]."""

    params: SamplingParams
    version: int
    watcher: Watcher | None
    waiting: deque[Job]
    samples: list[dict[int, Sample]]
    live: LiveRows | None = field(default=None)


class NativeEngine:
    """Continuous batching over a cache, on data, expert and pipeline parallel ranks (not tensor parallel).

    Ranks of one expert group run every forward together, so all ranks make as many steps as the busiest. A sample does
    not depend on what else is decoded with it: its random numbers are its own.
    """

    def __init__(
        self,
        model: R1Model,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        record_routes: bool = False,
        check_every: int | None = None,
    ):
        """batch_size: sequences that one rank decodes at a time. record_routes: samples know their experts.

        check_every: steps between looks at which samples ended; None: 1 on CPU, 8 where a look makes the host wait.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._record_routes = record_routes and model.config.num_moe_experts is not None
        self._device = next(model.parameters()).device
        self._check_every = check_every or (1 if self._device.type == "cpu" else 8)
        self._rotary = rotary_angles(model, 1)

    @torch.no_grad()
    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, policy_version: int, watcher: Watcher | None = None
    ) -> list[Group]:
        """Samples of each prompt, in order; collective over all ranks. Prompts and budget fit the model's positions."""
        self._model.eval()
        indices = range(params.samples_per_prompt)
        waiting = deque(Job(place, index, prompt) for place, prompt in enumerate(prompts) for index in indices)
        run = _Run(params, policy_version, watcher, waiting, [{} for _ in prompts])
        with recording(self._model, wanted=self._record_routes):
            self._decode(run)
        return [
            Group(prompt=prompt, samples=tuple(run.samples[place][index] for index in indices))
            for place, prompt in enumerate(prompts)
        ]

    def _decode(self, run: _Run) -> None:
        """Until every sample of every rank ended: take finished samples out, fill free rows, draw a token per row."""
        while True:
            self._harvest(run)
            wanted = self._wanted(run)
            busy, filling = largest_counts([len(run.waiting) + (run.live.active if run.live else 0), wanted])
            if not busy:
                return
            if filling:
                self._fill(run, [run.waiting.popleft() for _ in range(wanted)])
                continue
            assert run.live is not None
            run.live.make_room(self._check_every)
            for _ in range(self._check_every):
                self._step(run.live, run.params)

    def _harvest(self, run: _Run) -> None:
        """Hand over what has ended, and give up rows that nothing waits for."""
        live = run.live
        if live is None:
            return
        for row, length in live.ended():
            job = live.jobs[row]
            assert job is not None
            sample = self._sample(live, row, length, job, version=run.version)
            run.samples[job.place][job.index] = sample
            live.jobs[row] = None
            if run.watcher is not None:
                run.watcher.finished(job.place, job.prompt, sample)
        if run.watcher is not None:
            run.watcher.poll()
        if not run.waiting:
            live.compact()

    def _wanted(self, run: _Run) -> int:
        """How many waiting samples should get a row now."""
        if run.live is None:
            return min(len(run.waiting), self._batch_size)
        rows, free = len(run.live.jobs), len(run.live.free)
        few = free * REFILL_SHARE < rows and free < rows
        return 0 if few else min(len(run.waiting), free)

    def _fill(self, run: _Run, jobs: list[Job]) -> None:
        """Compute the prompts of these samples and draw their first tokens; ranks without any compute for the others.

        A rank without work decodes one throw-away token stream, because its experts are needed.
        """
        prompts = list(dict.fromkeys(job.prompt.token_ids for job in jobs))
        cache, logits = self._prefill(prompts or [(self._tokenizer.bos_id,)])
        row_of = {token_ids: row for row, token_ids in enumerate(prompts)}
        repeat = torch.tensor([row_of[job.prompt.token_ids] for job in jobs] or [0], device=self._device)
        noise = noise_of([(job.prompt.id, job.index) for job in jobs], run.params).to(self._device)
        new = LiveRows.fresh(jobs, cache.rows(repeat), noise)
        self._draw(new, None if logits is None else logits[repeat], run.params)
        if run.live is None:
            run.live = new
        elif jobs:
            run.live.refill(run.live.free[: len(jobs)], new)

    def _prefill(self, prompt_ids: list[tuple[int, ...]]) -> tuple[TokenCache, torch.Tensor | None]:
        """Cache of every prompt, and the next token's logits on the last stage."""
        lengths = [len(ids) for ids in prompt_ids]
        longest = max(lengths)
        padded = [[*ids, *[self._tokenizer.pad_id] * (longest - len(ids))] for ids in prompt_ids]
        tokens = torch.tensor(padded, device=self._device)
        cache = empty_cache(
            self._model,
            sequences=len(prompt_ids),
            capacity=in_blocks(longest + 1),
            device=self._device,
            routes=self._record_routes,
        )
        positions = torch.arange(longest, device=self._device).expand(len(prompt_ids), -1)
        hidden = self._forward(tokens, cache, positions, visible=longest)
        # Right padding of a short prompt lies in slots that its response overwrites before they are visible.
        ends = torch.tensor(lengths, device=self._device)
        cache = cache.with_lengths(ends)
        if hidden is None:
            return cache, None
        return cache, next_token_logits(self._model, hidden[ends - 1, torch.arange(len(lengths), device=self._device)])

    def _step(self, live: LiveRows, params: SamplingParams) -> None:
        """Compute every row's pending token and draw the next one."""
        # Rows that nobody waits for go on over their last slot; nobody reads what they produce.
        positions = live.cache.lengths.clamp(max=live.cache.capacity - 1)
        hidden = self._forward(live.pending[:, None], live.cache, positions[:, None], visible=live.visible)
        live.cache = live.cache.with_lengths(live.cache.lengths + 1)
        self._draw(live, None if hidden is None else next_token_logits(self._model, hidden[0]), params)

    def _forward(
        self, tokens: torch.Tensor, cache: TokenCache, positions: torch.Tensor, *, visible: int
    ) -> torch.Tensor | None:
        """Tokens [b, s] through all pipeline stages; hidden [s, b, h] on the last, None elsewhere."""
        config = self._model.config
        if len(self._rotary[0]) < cache.capacity:
            self._rotary = rotary_angles(self._model, cache.capacity)
        inputs = tokens
        if not self._model.pre_process:
            inputs = pipeline.receive((tokens.shape[1], tokens.shape[0], config.hidden_size), config.params_dtype)
        hidden = stage_forward(
            self._model, inputs, cache=cache, positions=positions, visible=visible, rotary=self._rotary
        )
        if self._model.post_process:
            return hidden
        pipeline.send(hidden)
        return None

    def _draw(self, live: LiveRows, logits: torch.Tensor | None, params: SamplingParams) -> None:
        """The next token of every row, known to every pipeline stage."""
        rows = len(live.jobs)
        tokens = torch.zeros(rows, dtype=torch.int64, device=self._device)
        logprobs = torch.zeros(rows, dtype=torch.float32, device=self._device)
        if logits is not None:
            place = live.age.clamp(max=params.max_response_tokens - 1)[:, None]
            noise = live.noise.gather(1, place)[:, 0]
            tokens, logprobs = choose_tokens(logits, noise, temperature=params.temperature, top_p=params.top_p)
        live.take(pipeline.from_last(tokens), pipeline.from_last(logprobs), eos_id=self._tokenizer.eos_id)

    def _sample(self, live: LiveRows, row: int, length: int, job: Job, *, version: int) -> Sample:
        # Copies: on the CPU these would be views of rows that are refilled.
        tokens = live.tokens[row, :length].cpu().numpy().copy()
        ended = tokens[-1] == self._tokenizer.eos_id
        routes = live.cache.routes
        # The last token is drawn, not computed: it has no experts.
        computed = live.starts[row] + length - 1
        return Sample(
            prompt_id=job.prompt.id,
            index=job.index,
            tokens=tokens,
            logprobs=live.logprobs[row, :length].cpu().numpy().copy(),
            finish="eos" if ended else "length",
            policy_version=version,
            text=self._tokenizer.decode(tokens[: length - int(ended)].tolist()),
            routes=None if routes is None else routes[row, :computed].cpu().numpy().copy(),
        )
