"""Scoring overlaps generation wherever samples are drawn for their scores: rejection sampling and evaluation."""

import numpy as np

from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.rl.watch import generate_and_score
from r1train.rollout.engine import SamplingParams
from r1train.rollout.types import Group, Sample

PROMPTS = [Prompt(f"p{n}", "gsm8k", f"{n}?", str(n), {}, (0,)) for n in range(3)]
PARAMS = SamplingParams(samples_per_prompt=2, temperature=1.0, top_p=1.0, max_response_tokens=4, seed=1, name="eval")


def sample(prompt: Prompt, index: int) -> Sample:
    return Sample(
        prompt_id=prompt.id,
        index=index,
        tokens=np.array([5, 1]),
        logprobs=np.zeros(2, dtype=np.float32),
        finish="eos",
        policy_version=7,
        text=f"{prompt.id}/{index}",
    )


class Engine:
    """Samples end in the order of their index, last prompt first."""

    def __init__(self, events: list[str]):
        self.events = events

    def generate(self, prompts, params, *, policy_version, watcher):
        assert policy_version == 7
        for index in range(params.samples_per_prompt):
            for place, prompt in reversed(list(enumerate(prompts))):
                self.events.append("draw")
                watcher.finished(place, prompt, sample(prompt, index))
                watcher.poll()
        self.events.append("end")
        return [Group(prompt=prompt, samples=(sample(prompt, 0), sample(prompt, 1))) for prompt in prompts]


class Graders:
    """A Scorer whose value of a response says whose it is."""

    def __init__(self, events: list[str]):
        self.events, self.found = events, {}

    def submit(self, key, prompt, response) -> None:
        self.events.append(response)
        prompt_id, index = response.split("/")
        assert prompt_id == prompt.id
        self.found[key] = Score(float(prompt_id[1:]) + int(index) / 10, {}, None)

    def poll(self) -> None:
        self.events.append("poll")

    def collect(self) -> dict[int, Score]:
        self.events.append("collect")
        return self.found


def test_graders_start_while_the_engine_draws():
    events: list[str] = []
    scored = generate_and_score(Engine(events), Graders(events), PROMPTS, PARAMS, policy_version=7)
    drawn = ["p2/0", "p1/0", "p0/0", "p2/1", "p1/1", "p0/1"]
    assert events == [event for response in drawn for event in ("draw", response, "poll")] + ["end", "collect"]
    assert [[score.value for score in scores] for _, scores in scored] == [[0.0, 0.1], [1.0, 1.1], [2.0, 2.1]]
    assert [group.prompt.id for group, _ in scored] == ["p0", "p1", "p2"]


def test_a_rank_without_prompts_gets_nothing():
    assert generate_and_score(Engine([]), Graders([]), [], PARAMS, policy_version=7) == []
