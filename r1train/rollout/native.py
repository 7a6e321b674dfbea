"""Generation on the training weights themselves: no second copy, nothing to synchronise."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import torch

from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.dist.comm import largest_counts
from r1train.model.decode_parallel import whole_sequences
from r1train.model.gpt import R1Model
from r1train.model.replay import recording
from r1train.rollout.engine import SamplingParams, Watcher
from r1train.rollout.live import Job, LiveRows
from r1train.rollout.prefill import Prefill
from r1train.rollout.sampling import noise_of
from r1train.rollout.steps import Decoder, choose_steps
from r1train.rollout.types import Group, Sample

# Rows are refilled once so many of them (one in REFILL_SHARE) are free: each refill is a forward that all ranks join.
REFILL_SHARE = 8


@dataclass
class _Run:
    """One call of generate. waiting: samples that have no row yet; samples: the finished ones, [prompt][index].

    longest: tokens of the longest prompt.
    """

    params: SamplingParams
    version: int
    watcher: Watcher | None
    waiting: deque[Job]
    samples: list[dict[int, Sample]]
    longest: int
    live: LiveRows | None = field(default=None)


class NativeEngine:
    """Continuous batching over a cache, on data, expert, pipeline and tensor parallel ranks.

    Ranks that hold one replica of the model together (its stages, and tensor-parallel ranks) are asked the same. Ranks
    of one expert group run every forward together, so all ranks make as many steps as the busiest. A sample does not
    depend on what else is decoded with it: its random numbers are its own.
    """

    def __init__(
        self,
        model: R1Model,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        record_routes: bool = False,
        check_every: int | None = None,
        cuda_graphs: bool = True,
    ):
        """batch_size: sequences that one rank decodes at a time. record_routes: samples know their experts.

        cuda_graphs: replay steps as CUDA graphs where that is possible (rollout/steps.py says when).
        check_every: steps between looks at which samples ended; None: 1 on CPU, 8 where a look makes the host wait.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        record_routes = record_routes and model.config.num_moe_experts is not None
        self._decoder = Decoder(model, tokenizer, record_routes=record_routes)
        self._device = self._decoder.device
        self._nobody = self._prefill_of([(tokenizer.bos_id,)])
        # Public, so that a tool can say which kind it measured.
        self.steps = choose_steps(self._decoder, batch_size=batch_size, cuda_graphs=cuda_graphs)
        self._check_every = check_every or (1 if self._device.type == "cpu" else 8)

    @torch.no_grad()
    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, policy_version: int, watcher: Watcher | None = None
    ) -> list[Group]:
        """Samples of each prompt, in order; collective over all ranks. Prompts and budget fit the model's positions."""
        self._model.eval()
        indices = range(params.samples_per_prompt)
        waiting = deque(Job(place, index, prompt) for place, prompt in enumerate(prompts) for index in indices)
        longest = max((len(prompt.token_ids) for prompt in prompts), default=1)
        run = _Run(params, policy_version, watcher, waiting, [{} for _ in prompts], longest)
        with recording(self._model, wanted=self._decoder.record_routes), whole_sequences(self._model):
            self._decode(run)
        run.live = None
        self.steps.close()
        return [
            Group(prompt=prompt, samples=tuple(run.samples[place][index] for index in indices))
            for place, prompt in enumerate(prompts)
        ]

    def _decode(self, run: _Run) -> None:
        """Until every sample of every rank ended: take finished samples out, fill free rows, draw a token per row."""
        while True:
            self._harvest(run)
            jobs = list(islice(run.waiting, self._wanted(run)))
            prefill = self._prefill_of(job.prompt.token_ids for job in jobs)
            busy = len(run.waiting) + (run.live.active if run.live else 0)
            busy, forwards = largest_counts([busy, len(prefill.pieces)])
            if not busy:
                return
            if forwards:
                for _ in jobs:
                    run.waiting.popleft()
                self._fill(run, jobs, prefill if jobs else self._nobody, forwards=forwards)
                continue
            assert run.live is not None
            run.live.make_room(self._check_every)
            self.steps.run(run.live, run.params, self._check_every)

    def _harvest(self, run: _Run) -> None:
        """Hand over what has ended, and give up rows that nothing waits for."""
        live = run.live
        if live is None:
            return
        ended = live.ended()
        for job, sample in self._samples(live, ended, run.version) if ended else ():
            run.samples[job.place][job.index] = sample
            if run.watcher is not None:
                run.watcher.finished(job.place, job.prompt, sample)
        for row, _ in ended:
            live.jobs[row] = None
        if run.watcher is not None:
            run.watcher.poll()
        if not run.waiting:
            live.compact(self.steps.shrink_share, self.steps.rows_for)

    def _wanted(self, run: _Run) -> int:
        """How many waiting samples should get a row now."""
        if run.live is None:
            return min(len(run.waiting), self._batch_size)
        rows, free = len(run.live.jobs), len(run.live.free)
        few = free * REFILL_SHARE < rows and free < rows
        return 0 if few else min(len(run.waiting), free)

    def _fill(self, run: _Run, jobs: list[Job], prefill: Prefill, *, forwards: int) -> None:
        """Compute the prompts of these samples and draw their first tokens; ranks without any compute for the others.

        A rank without work decodes one throw-away token stream, because its experts are needed.
        """
        feed_forward = self.steps.feed_forward
        cache, logits = prefill.run(self._decoder, self._tokenizer, feed_forward=feed_forward, forwards=forwards)
        row_of = {token_ids: row for row, token_ids in enumerate(prefill.prompt_ids)}
        repeat = torch.tensor([row_of[job.prompt.token_ids] for job in jobs] or [0], device=self._device)
        noise = noise_of([(job.prompt.id, job.index) for job in jobs], run.params).to(self._device)
        new = LiveRows.fresh(jobs, cache.rows(repeat), noise)
        self._decoder.draw(new, None if logits is None else logits[repeat], run.params)
        new.advance(1)
        if run.live is None:
            run.live = self.steps.open(new, slots=run.longest + run.params.max_response_tokens + self._check_every)
        elif jobs:
            run.live.refill(run.live.free[: len(jobs)], new)

    def _prefill_of(self, prompt_ids: Iterable[tuple[int, ...]]) -> Prefill:
        return Prefill.of(prompt_ids, heads=self._decoder.heads)

    def _samples(self, live: LiveRows, ended: list[tuple[int, int]], version: int) -> list[tuple[Job, Sample]]:
        """The ended (row, tokens) as samples: one transfer of each tensor for all of them."""
        rows, lengths = zip(*ended, strict=True)
        places = torch.tensor(rows, device=self._device)
        # The last token is drawn, not computed: it has no experts.
        computed = [live.starts[row] + length - 1 for row, length in ended]
        tokens = live.tokens[places, : max(lengths)].cpu().numpy()
        logprobs = live.logprobs[places, : max(lengths)].cpu().numpy()
        routes = live.cache.routes
        experts = None if routes is None else routes[places, : max(computed)].cpu().numpy()
        found = []
        for place, (row, length) in enumerate(ended):
            job, drawn = live.jobs[row], tokens[place, :length].copy()
            assert job is not None
            finished = drawn[-1] == self._tokenizer.eos_id
            sample = Sample(
                prompt_id=job.prompt.id,
                index=job.index,
                tokens=drawn,
                logprobs=logprobs[place, :length].copy(),
                finish="eos" if finished else "length",
                policy_version=version,
                text=self._tokenizer.decode(drawn[: length - int(finished)].tolist()),
                routes=None if experts is None else experts[place, : computed[place]].copy(),
            )
            found.append((job, sample))
        return found
