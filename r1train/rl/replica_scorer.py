"""Scores of a whole replica: its ranks draw the same samples, and one of them has graders."""

from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.reward.score import Scorer
from r1train.rl.gather import decides, from_deciding_rank


class ReplicaScorer(Scorer):
    """A Scorer that every rank of a replica holds and asks the same; only the deciding rank grades.

    collect() and score() are collective over the replica, and give every rank the same scores.
    """

    def submit(self, key: int, prompt: Prompt, response: str) -> None:
        if decides():
            super().submit(key, prompt, response)

    def collect(self) -> dict[int, Score]:
        return from_deciding_rank(super().collect())
