"""Responses that are drawn piece by piece, a piece per rollout, each with the weights of its time. No collectives."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.rl.carried import Rows
from r1train.rollout.types import Group, Sample, group_from_row, group_to_row


@dataclass
class Flight:
    """A prompt whose samples are being drawn. place: of the prompt in the stream of prompts.

    samples: as far as they are, by index; scores: of all of them, once the last one ended.
    """

    place: int
    prompt: Prompt
    samples: dict[int, Sample] = field(default_factory=dict)
    scores: tuple[Score, ...] | None = None

    @property
    def group(self) -> Group:
        return Group(prompt=self.prompt, samples=tuple(self.samples[index] for index in sorted(self.samples)))


def has_ended(sample: Sample, *, budget: int) -> bool:
    """Whether nothing more is drawn: it ended itself, or has used its budget of tokens."""
    return sample.finish == "eos" or len(sample.tokens) >= budget


def is_whole(flight: Flight, *, group_size: int, budget: int) -> bool:
    """Whether every sample of the group has ended."""
    return len(flight.samples) == group_size and all(
        has_ended(sample, budget=budget) for sample in flight.samples.values()
    )


def requests(flights: list[Flight], *, group_size: int, budget: int) -> dict[int, Prompt]:
    """What the engine is asked in one pass: number of the flight * group_size + index -> prompt and response so far.

    Each has an id of its own, because the random numbers of a piece belong to its prompt's id.
    """
    asked = {}
    for number, flight in enumerate(flights):
        for index in range(group_size):
            sample = flight.samples.get(index)
            if sample is None or not has_ended(sample, budget=budget):
                so_far = () if sample is None else tuple(sample.tokens.tolist())
                asked[number * group_size + index] = replace(
                    flight.prompt,
                    id=f"{flight.prompt.id}@{flight.place}/{index}",
                    token_ids=(*flight.prompt.token_ids, *so_far),
                )
    return asked


def joined(
    before: Sample | None, piece: Sample, *, prompt_id: str, index: int, decode: Callable[[list[int]], str]
) -> Sample:
    """The response so far with one more piece, which was drawn behind it.

    Log-probabilities stay those of the weights that drew each token. Experts are the piece's, which computed prompt and
    response so far again: all of them are of its weights.
    """
    tokens, logprobs, earlier = piece.tokens, piece.logprobs, piece.earlier
    if before is not None:
        tokens = np.concatenate([before.tokens, tokens])
        logprobs = np.concatenate([before.logprobs, logprobs])
        # Two passes of one rollout make one piece: they have the same weights.
        same = before.policy_version == piece.policy_version
        earlier = before.earlier if same else before.drawn_by
    shown = tokens[:-1] if piece.finish == "eos" else tokens
    return replace(
        piece,
        prompt_id=prompt_id,
        index=index,
        tokens=tokens,
        logprobs=logprobs,
        text=decode(shown.tolist()),
        earlier=earlier,
    )


def to_rows(flights: list[Flight]) -> Rows:
    """JSON-ready rows of what is under way."""
    return [
        {
            **group_to_row(flight.group),
            "place": flight.place,
            "scores": None if flight.scores is None else [score.to_row() for score in flight.scores],
        }
        for flight in flights
    ]


def from_rows(rows: Rows) -> list[Flight]:
    """Inverse of to_rows."""
    flights = []
    for row in rows:
        group, scores = group_from_row(row), row["scores"]
        flights.append(
            Flight(
                row["place"],
                group.prompt,
                {sample.index: sample for sample in group.samples},
                None if scores is None else tuple(map(Score.from_row, scores)),
            )
        )
    return flights
