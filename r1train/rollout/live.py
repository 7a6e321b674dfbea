"""The sequences that a process decodes at the moment: rows that are refilled when a sample ends.

The host knows how far every row is without asking the device: each step adds one token to each row, also to rows whose
sample has ended; what those produce is dropped. Only `ended` waits for the device. A step changes what is on the
device in place, so that a CUDA graph of it can be replayed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from r1train.data.prompts import Prompt
from r1train.model.token_cache import TokenCache

CACHE_BLOCK = 128  # slots; the cache grows by whole blocks, a quarter of what it has at the least
PER_ROW = ("noise", "tokens", "logprobs", "lengths", "age", "done", "pending")  # tensors beside the cache


@dataclass(frozen=True)
class Job:
    """One sample to draw: number `index` of prompts[place]."""

    place: int
    index: int
    prompt: Prompt


@dataclass
class LiveRows:
    """Row r of every field is one sequence. job None: nothing that anybody waits for.

    ages: tokens drawn since the row was filled; on the device `age`. [rows, budget]: noise, and tokens and
    logprobs, filled as it goes; lengths: drawn tokens of the sample. pending: the token to be computed next.
    """

    jobs: list[Job | None]
    starts: list[int]
    ages: list[int]
    noise: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor
    lengths: torch.Tensor
    age: torch.Tensor
    done: torch.Tensor
    pending: torch.Tensor
    cache: TokenCache

    @staticmethod
    def fresh(jobs: list[Job], cache: TokenCache, noise: torch.Tensor) -> "LiveRows":
        """Rows over a filled cache [rows of the jobs, or one row for nobody], noise [rows, budget]; no token yet."""
        rows, device = len(noise), noise.device
        counts = torch.zeros(rows, dtype=torch.int64, device=device)
        return LiveRows(
            jobs=list(jobs) if jobs else [None],
            starts=[len(job.prompt.token_ids) for job in jobs] if jobs else [1],
            ages=[0] * rows,
            noise=noise,
            tokens=torch.zeros(noise.shape, dtype=torch.int64, device=device),
            logprobs=torch.zeros_like(noise),
            lengths=counts,
            age=counts.clone(),
            done=torch.full((rows,), not jobs, dtype=torch.bool, device=device),
            pending=counts.clone(),
            cache=cache,
        )

    @property
    def free(self) -> list[int]:
        return [row for row, job in enumerate(self.jobs) if job is None]

    @property
    def active(self) -> int:
        return len(self.jobs) - len(self.free)

    @staticmethod
    def blank(rows: int, budget: int, cache: TokenCache) -> "LiveRows":
        """Rows for nobody yet, over an empty cache."""
        noise = torch.zeros((rows, budget), device=cache.entries.device)
        return LiveRows.fresh([], cache, noise).first(rows, budget)

    def first(self, rows: int, budget: int) -> "LiveRows":
        """A view of the first rows and the first part of the budget, as if nobody waited for any of them."""
        parts = {name: vars(self)[name][:rows] for name in PER_ROW}
        wide = {name: parts[name][:, :budget] for name in ("noise", "tokens", "logprobs")}
        nobody = {"jobs": [None] * rows, "starts": [1] * rows, "ages": [0] * rows}
        return LiveRows(**nobody, **parts | wide, cache=self.cache.between(0, rows))

    def clear(self) -> None:
        """Forget everything that is on the device, in place."""
        for tensor in self.tensors():
            tensor.zero_()
        self.done.fill_(True)

    def tensors(self) -> list[torch.Tensor]:
        """All that is on the device."""
        routes = [] if self.cache.routes is None else [self.cache.routes]
        return [*(vars(self)[name] for name in PER_ROW), self.cache.entries, self.cache.lengths, *routes]

    def visible(self, steps: int = 1) -> int:
        """Cache slots that rows with a job read at the most in the coming steps."""
        ends = [
            start + age for start, age, job in zip(self.starts, self.ages, self.jobs, strict=True) if job is not None
        ]
        return min(max(ends, default=1) + steps - 1, self.cache.capacity)

    def take(self, tokens: torch.Tensor, logprobs: torch.Tensor, *, eos_id: int) -> None:
        """Book one drawn token of every row, [rows] each, in place. Never waits for the device."""
        budget = self.tokens.shape[1]
        place = self.age.clamp(max=budget - 1)[:, None]
        self.tokens.scatter_(1, place, torch.where(self.done[:, None], self.tokens.gather(1, place), tokens[:, None]))
        kept = torch.where(self.done[:, None], self.logprobs.gather(1, place), logprobs[:, None])
        self.logprobs.scatter_(1, place, kept)
        self.age += 1
        self.lengths.copy_(torch.where(self.done, self.lengths, self.age))
        self.done |= (tokens == eos_id) | (self.age >= budget)
        self.pending.copy_(tokens)

    def advance(self, steps: int) -> None:
        """The host's part of so many `take`s."""
        self.ages = [age + steps for age in self.ages]

    def ended(self) -> list[tuple[int, int]]:
        """(row, tokens) of samples that are complete. The one wait for the device."""
        state = torch.stack([self.done.long(), self.lengths]).tolist()
        return [
            (row, length)
            for row, (done, length) in enumerate(zip(*state, strict=True))
            if done and self.jobs[row] is not None
        ]

    def compact(self, share: int, rows_for: Callable[[int], int]) -> None:
        """Give up free rows, in place, once no more than one row in `share` has a job.

        rows_for: number of rows to go on with for so many samples; at least one, whose experts other ranks may need.
        """
        rows = rows_for(self.active)
        if share * self.active > len(self.jobs) or rows >= len(self.jobs):
            return
        chosen = [row for row, job in enumerate(self.jobs) if job is not None]
        chosen = [*chosen, *self.free][:rows]
        keep = torch.tensor(chosen, device=self.age.device)
        for name in PER_ROW:
            tensor = vars(self)[name]
            tensor[:rows] = tensor[keep]
            setattr(self, name, tensor[:rows])
        for name in ("jobs", "starts", "ages"):
            setattr(self, name, [vars(self)[name][row] for row in chosen])
        self.cache = self.cache.keep(keep)

    def refill(self, rows: list[int], new: "LiveRows") -> None:
        """Put the rows of `new` in place of these free ones."""
        self.reserve(new.cache.capacity)
        places = torch.tensor(rows, device=self.age.device)
        for name in PER_ROW:
            vars(self)[name][places] = vars(new)[name]
        for row, job, start, age in zip(rows, new.jobs, new.starts, new.ages, strict=True):
            self.jobs[row], self.starts[row], self.ages[row] = job, start, age
        self.cache.take_over(new.cache, places)

    def make_room(self, steps: int) -> None:
        """Room for so many more tokens of every sample that somebody waits for."""
        waited = [row for row, job in enumerate(self.jobs) if job is not None]
        self.reserve(max((self.starts[row] + self.ages[row] + steps for row in waited), default=0))

    def reserve(self, slots: int) -> None:
        """At least so many slots in the cache."""
        if slots > self.cache.capacity:
            self.cache = self.cache.with_capacity(in_blocks(max(slots, self.cache.capacity * 5 // 4)))


def in_blocks(slots: int) -> int:
    """The next multiple of a block."""
    return -(-slots // CACHE_BLOCK) * CACHE_BLOCK
