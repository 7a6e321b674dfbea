"""What a reward is: a response text and its prompt -> Score."""

import math
from dataclasses import dataclass
from typing import Protocol

from r1train.data.prompts import Prompt


@dataclass(frozen=True)
class Score:
    """value: the reward. parts: unweighted value of each part, only those that were computed.

    error: None, or why the sample could not be graded (crash of the grader, exception of the verifier that its problem
    brings about). Then value is NaN and the failed part is absent from parts: the sample is counted as an error and
    kept out of the advantages, so a broken grader cannot look like a wrong answer. timed_out: its verifier did not end
    in time or within its memory, so it is wrong: hanging a verifier must not be worth more than a wrong answer.
    """

    value: float
    parts: dict[str, float]
    error: str | None
    timed_out: bool = False

    def __post_init__(self) -> None:
        assert math.isnan(self.value) == (self.error is not None), self

    def to_row(self) -> dict[str, object]:
        """JSON-ready dict; the NaN of an error becomes null, timed_out is there where it is true."""
        late = {"timed_out": True} if self.timed_out else {}
        return {"value": None if self.error else self.value, "parts": self.parts, "error": self.error, **late}

    @staticmethod
    def from_row(row: dict) -> "Score":
        """Inverse of to_row. Raises KeyError when a field is absent."""
        value = math.nan if row["error"] is not None else row["value"]
        return Score(value, row["parts"], row["error"], timed_out="timed_out" in row)


class Reward(Protocol):
    """One part of a reward: the prompt and the decoded response -> a number, usually in [0, 1]."""

    def __call__(self, prompt: Prompt, response: str) -> float: ...
