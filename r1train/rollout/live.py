"""The sequences that a process decodes at the moment: rows that are refilled when a sample ends.

The host knows how far every row is without asking the device: each step adds one token to each row, also to rows whose
sample has ended; what those produce is dropped. Only `ended` waits for the device.
"""

from dataclasses import dataclass

import torch

from r1train.data.prompts import Prompt
from r1train.model.token_cache import TokenCache

CACHE_BLOCK = 128  # slots; the cache grows by whole blocks, a quarter of what it has at the least


@dataclass(frozen=True)
class Job:
    """One sample to draw: number `index` of prompts[place]."""

    place: int
    index: int
    prompt: Prompt


@dataclass
class LiveRows:
    """Row r of every field is one sequence. job None: nothing that anybody waits for.

    ages: tokens drawn since the row was filled; the same on the device as `age`. [rows, budget]: noise, and tokens and
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

    @property
    def visible(self) -> int:
        """Cache slots that the coming step reads at the most."""
        longest = max(start + age for start, age in zip(self.starts, self.ages, strict=True))
        return min(longest, self.cache.capacity)

    def take(self, tokens: torch.Tensor, logprobs: torch.Tensor, *, eos_id: int) -> None:
        """Book one drawn token of every row, [rows] each. Never waits for the device."""
        budget = self.tokens.shape[1]
        place = self.age.clamp(max=budget - 1)[:, None]
        self.tokens.scatter_(1, place, torch.where(self.done[:, None], self.tokens.gather(1, place), tokens[:, None]))
        kept = torch.where(self.done[:, None], self.logprobs.gather(1, place), logprobs[:, None])
        self.logprobs.scatter_(1, place, kept)
        self.age = self.age + 1
        self.lengths = torch.where(self.done, self.lengths, self.age)
        self.done = self.done | (tokens == eos_id) | (self.age >= budget)
        self.pending = tokens
        self.ages = [age + 1 for age in self.ages]

    def ended(self) -> list[tuple[int, int]]:
        """(row, tokens) of samples that are complete. The one wait for the device."""
        state = torch.stack([self.done.long(), self.lengths]).tolist()
        return [
            (row, length)
            for row, (done, length) in enumerate(zip(*state, strict=True))
            if done and self.jobs[row] is not None
        ]

    def compact(self) -> None:
        """Leave out free rows once they are half of all; one row stays, whose experts other ranks may need."""
        if 2 * self.active > len(self.jobs) or len(self.jobs) == 1:
            return
        rows = [row for row, job in enumerate(self.jobs) if job is not None] or [0]
        keep = torch.tensor(rows, device=self.age.device)
        for name in ("noise", "tokens", "logprobs", "lengths", "age", "done", "pending"):
            setattr(self, name, vars(self)[name][keep])
        for name in ("jobs", "starts", "ages"):
            setattr(self, name, [vars(self)[name][row] for row in rows])
        self.cache = self.cache.rows(keep)

    def refill(self, rows: list[int], new: "LiveRows") -> None:
        """Put the rows of `new` in place of these free ones."""
        self.reserve(new.cache.capacity)
        places = torch.tensor(rows, device=self.age.device)
        for name in ("noise", "tokens", "logprobs", "lengths", "age", "done", "pending"):
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
