"""What every generation engine offers, and the request it takes."""

from dataclasses import dataclass
from typing import Protocol

from r1train.data.prompts import Prompt
from r1train.rollout.types import Group


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to sample. name: what for, part of the random stream's name; seed: the run's seed."""

    samples_per_prompt: int
    temperature: float
    top_p: float
    max_response_tokens: int
    seed: int
    name: str


class Engine(Protocol):
    """Generates with some policy version; every rank of the job calls the same methods in the same order."""

    def generate(self, prompts: list[Prompt], params: SamplingParams, *, policy_version: int) -> list[Group]:
        """This data-parallel rank's prompts -> their groups, in order. Ranks may bring different numbers, also none."""
