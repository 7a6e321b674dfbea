"""Generation, rewards and evaluation."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How samples are drawn. batch_size: sequences that one process decodes at a time."""

    engine: Literal["native"]
    temperature: float
    top_p: float
    max_prompt_tokens: int
    max_response_tokens: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of the reward's parts (R1: accuracy and format equal; language consistency from RL stage 1 on)."""

    name: str
    accuracy: float
    format: float
    language: float
    grader_timeout_s: float
    grader_processes: int


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation after a stage: pass@1 as the mean over samples_per_problem of each held-out problem."""

    problems_per_task: int
    samples_per_problem: int
    temperature: float
    top_p: float
    max_response_tokens: int
