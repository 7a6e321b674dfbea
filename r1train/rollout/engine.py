"""What every generation engine offers, the request it takes, and who is told while it runs."""

from dataclasses import dataclass
from typing import Protocol

from r1train.data.prompts import Prompt
from r1train.rollout.types import Group, Sample


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample. name: what for, part of the random stream's name; seed: the run's seed."""

    samples_per_prompt: int
    temperature: float
    top_p: float
    max_response_tokens: int
    seed: int
    name: str


class Watcher(Protocol):
    """Told about samples as they finish, in any order, so that grading and storing overlap with generation."""

    def finished(self, place: int, prompt: Prompt, sample: Sample) -> None:
        """A sample of prompts[place] is there."""

    def poll(self) -> None:
        """Called between decoding steps; must not wait."""


class Engine(Protocol):
    """Generates with some policy version; every rank of the job calls the same methods in the same order."""

    def generate(
        self, prompts: list[Prompt], params: SamplingParams, *, policy_version: int, watcher: Watcher | None = None
    ) -> list[Group]:
        """This data-parallel rank's prompts -> their groups, in order. Ranks may bring different numbers, also none."""
