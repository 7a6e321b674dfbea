"""Generation on the training weights themselves: no second copy, nothing to synchronise."""

from dataclasses import dataclass

import numpy as np
import torch

from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.dist import pipeline
from r1train.dist.comm import largest_count
from r1train.model.decode import empty_cache, next_token_logits, rotary_angles, stage_forward
from r1train.model.gpt import R1Model
from r1train.model.token_cache import TokenCache
from r1train.rollout.engine import SamplingParams
from r1train.rollout.sampling import choose_tokens, sample_noise
from r1train.rollout.types import Group, Sample


@dataclass
class _Batch:
    """Sequences that are decoded together; row k of every field is one sequence.

    rows: which sample each active row is. [samples, budget]: noise, and tokens and logprobs, filled as it goes.
    """

    rows: torch.Tensor
    noise: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor
    lengths: torch.Tensor


class NativeEngine:
    """Batched sampling with a cache, over data, expert and pipeline parallel ranks (not tensor parallel).

    Ranks of one expert group run every forward together, so all ranks make as many batches and steps as the busiest.
    """

    def __init__(self, model: R1Model, tokenizer: Tokenizer, *, batch_size: int):
        """batch_size: sequences that one rank decodes at a time."""
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size

    @torch.no_grad()
    def generate(self, prompts: list[Prompt], params: SamplingParams, *, policy_version: int) -> list[Group]:
        """Samples of each prompt, in order; collective over all ranks. Prompts and budget fit the model's positions."""
        self._model.eval()
        per_batch = max(1, self._batch_size // params.samples_per_prompt)
        parts = [prompts[start : start + per_batch] for start in range(0, len(prompts), per_batch)]
        groups: list[Group] = []
        for index in range(largest_count(len(parts))):
            groups += self._generate_batch(parts[index] if index < len(parts) else [], params, policy_version)
        return groups

    def _generate_batch(self, prompts: list[Prompt], params: SamplingParams, version: int) -> list[Group]:
        n, budget = params.samples_per_prompt, params.max_response_tokens
        # A rank without work decodes one throw-away token stream, because its experts are needed by the others.
        prompt_ids = [prompt.token_ids for prompt in prompts] or [(self._tokenizer.bos_id,)]
        cache, logits = self._prefill(prompt_ids, budget)
        repeat = torch.arange(len(prompt_ids), device=cache.lengths.device).repeat_interleave(n)
        cache, logits = cache.rows(repeat), logits[repeat] if logits is not None else None
        batch = self._new_batch(prompts, params, rows=len(repeat))
        self._decode(batch, cache, logits, params, idle=not prompts)
        return [
            self._group(prompt, batch, first=k * n, params=params, version=version) for k, prompt in enumerate(prompts)
        ]

    def _new_batch(self, prompts: list[Prompt], params: SamplingParams, *, rows: int) -> _Batch:
        budget = params.max_response_tokens
        noise = np.zeros((rows, budget), dtype=np.float32)
        for k, prompt in enumerate(prompts):
            for index in range(params.samples_per_prompt):
                noise[k * params.samples_per_prompt + index] = sample_noise(
                    params.seed, params.name, prompt_id=prompt.id, index=index, count=budget
                )
        device = next(self._model.parameters()).device
        return _Batch(
            rows=torch.arange(rows, device=device),
            noise=torch.from_numpy(noise).to(device),
            tokens=torch.zeros((rows, budget), dtype=torch.int64, device=device),
            logprobs=torch.zeros((rows, budget), dtype=torch.float32, device=device),
            lengths=torch.zeros(rows, dtype=torch.int64, device=device),
        )

    def _prefill(self, prompt_ids: list[tuple[int, ...]], budget: int) -> tuple[TokenCache, torch.Tensor | None]:
        """Cache of every prompt with room for the budget, and the next token's logits on the last stage."""
        device = next(self._model.parameters()).device
        lengths = torch.tensor([len(ids) for ids in prompt_ids], device=device)
        longest = int(lengths.max())
        tokens = torch.full((len(prompt_ids), longest), self._tokenizer.pad_id, device=device)
        for row, ids in enumerate(prompt_ids):
            tokens[row, : len(ids)] = torch.tensor(ids, device=device)
        cache = empty_cache(self._model, sequences=len(prompt_ids), capacity=longest + budget, device=device)
        self._rotary = rotary_angles(self._model, longest + budget)
        positions = torch.arange(longest, device=device).expand(len(prompt_ids), -1)
        hidden = self._forward(tokens, cache, positions)
        # Right padding of a short prompt lies in slots that its response overwrites before they are visible.
        cache = cache.with_lengths(lengths)
        if hidden is None:
            return cache, None
        return cache, next_token_logits(self._model, hidden[lengths - 1, torch.arange(len(prompt_ids), device=device)])

    def _forward(self, tokens: torch.Tensor, cache: TokenCache, positions: torch.Tensor) -> torch.Tensor | None:
        """Tokens [b, s] through all pipeline stages; hidden [s, b, h] on the last, None elsewhere."""
        config = self._model.config
        inputs = tokens
        if not self._model.pre_process:
            inputs = pipeline.receive((tokens.shape[1], tokens.shape[0], config.hidden_size), config.params_dtype)
        hidden = stage_forward(self._model, inputs, cache=cache, positions=positions, rotary=self._rotary)
        if self._model.post_process:
            return hidden
        pipeline.send(hidden)
        return None

    def _decode(
        self, batch: _Batch, cache: TokenCache, logits: torch.Tensor | None, params: SamplingParams, *, idle: bool
    ) -> None:
        """Sample until every sequence of every rank ended; finished rows leave the batch once half of it is done."""
        done = torch.full_like(batch.rows, idle, dtype=torch.bool)
        for step in range(params.max_response_tokens):
            chosen = self._choose(batch, logits, step, params)
            writing = batch.rows[~done]
            batch.tokens[writing, step] = chosen[0][~done]
            batch.logprobs[writing, step] = chosen[1][~done]
            batch.lengths[writing] = step + 1
            done = done | (chosen[0] == self._tokenizer.eos_id)
            if step + 1 == params.max_response_tokens or largest_count(int((~done).sum())) == 0:
                return
            tokens = chosen[0]
            if 2 * int((~done).sum()) <= len(done) and len(done) > 1:
                # One row stays even when all are done: this rank's experts may still be needed.
                keep = (
                    torch.nonzero(~done)[:, 0]
                    if not done.all()
                    else torch.zeros(1, dtype=torch.int64, device=done.device)
                )
                batch.rows, done, tokens, cache = batch.rows[keep], done[keep], tokens[keep], cache.rows(keep)
            # Rows that are done go on over their last slot; nobody reads what they produce.
            positions = cache.lengths.clamp(max=cache.entries.shape[2] - 1)
            hidden = self._forward(tokens[:, None], cache, positions[:, None])
            cache = cache.with_lengths(cache.lengths + 1)
            logits = next_token_logits(self._model, hidden[0]) if hidden is not None else None

    def _choose(self, batch: _Batch, logits: torch.Tensor | None, step: int, params: SamplingParams):
        """Tokens and logprobs of this step, known to every pipeline stage."""
        device = batch.tokens.device
        tokens = torch.zeros(len(batch.rows), dtype=torch.int64, device=device)
        logprobs = torch.zeros(len(batch.rows), dtype=torch.float32, device=device)
        if logits is not None:
            noise = batch.noise[batch.rows, step]
            tokens, logprobs = choose_tokens(logits, noise, temperature=params.temperature, top_p=params.top_p)
        return pipeline.from_last(tokens), pipeline.from_last(logprobs)

    def _group(self, prompt: Prompt, batch: _Batch, *, first: int, params: SamplingParams, version: int) -> Group:
        samples = []
        for index in range(params.samples_per_prompt):
            row = first + index
            length = int(batch.lengths[row])
            tokens = batch.tokens[row, :length].cpu().numpy()
            ended = tokens[-1] == self._tokenizer.eos_id
            samples.append(
                Sample(
                    prompt_id=prompt.id,
                    index=index,
                    tokens=tokens,
                    logprobs=batch.logprobs[row, :length].cpu().numpy(),
                    finish="eos" if ended else "length",
                    policy_version=version,
                    text=self._tokenizer.decode(tokens[: length - int(ended)].tolist()),
                )
            )
        return Group(prompt=prompt, samples=tuple(samples))
