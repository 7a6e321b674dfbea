"""A killed rollout goes on with what is missing; what was stored with other weights or parameters is dropped."""

from dataclasses import replace

import numpy as np
import pytest

from r1train.config.schema_reward import CodeConfig
from r1train.config.schema_rl import RewardConfig
from r1train.data.prompts import Prompt
from r1train.reward.score import Scorer
from r1train.rl.watch import RolloutWatcher
from r1train.rollout.engine import SamplingParams
from r1train.rollout.journal import Journal
from r1train.rollout.types import Group, Sample

PARAMS = SamplingParams(samples_per_prompt=2, temperature=1.0, top_p=1.0, max_response_tokens=4, seed=1, name="rl1/8")
REWARD = RewardConfig(
    name="test", accuracy=1.0, format=1.0, language=0.0, grader_timeout_s=5.0, grader_processes=0, code=CodeConfig()
)


def prompt(place: int) -> Prompt:
    return Prompt(f"p{place}", "gsm8k", "1+2?", "3", {}, (0, 3, 4))


def sample(place: int, index: int, answer: int = 3) -> Sample:
    return Sample(
        prompt_id=f"p{place}",
        index=index,
        tokens=np.array([5 + index, 1]),
        logprobs=np.array([-0.1, -1 / 3], dtype=np.float32),
        finish="eos",
        policy_version=8,
        text=f"<think>1+2</think><answer>{answer}</answer>",
        routes=np.array([[[1, 255]], [[0, 3]], [[7, 2]], [[9, 4]]], dtype=np.uint8),
    )


def journal(path, *, weights: int = 5, params: SamplingParams = PARAMS) -> Journal:
    return Journal(path, params, policy_version=8, weights={"0/bfloat16": weights})


@pytest.fixture
def stored(tmp_path):
    """Two groups of the first try and one of the second, and then a line that a kill cut off."""
    path = tmp_path / "rollouts" / "a.part.jsonl"
    first = journal(path)
    for attempt, place in ((0, 4), (0, 0), (1, 6)):
        first.add(attempt, place, Group(prompt=prompt(place), samples=(sample(place, 0), sample(place, 1))))
    with path.open("a") as file:
        file.write('{"attempt": 0, "place": 2, "pro')
    return path


def test_finished_groups_are_found_bit_for_bit(stored):
    again = journal(stored)
    assert again.found(0) == {4: "p4", 0: "p0"}
    assert again.found(1) == {6: "p6"}
    group = again.group(0, 4, prompt(4))
    assert group.prompt == prompt(4)
    for found, expected in zip(group.samples, (sample(4, 0), sample(4, 1)), strict=True):
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert np.array_equal(found.logprobs, expected.logprobs)
        assert np.array_equal(found.routes, expected.routes) and found.routes.dtype == np.uint8
        assert (found.text, found.finish, found.policy_version) == (expected.text, "eos", 8)


def test_the_cut_line_is_dropped_and_the_file_goes_on(stored):
    journal(stored).add(0, 2, Group(prompt=prompt(2), samples=(sample(2, 0), sample(2, 1))))
    third = journal(stored)
    assert third.found(0) == {4: "p4", 0: "p0", 2: "p2"}
    third.remove()
    assert not stored.exists()


@pytest.mark.parametrize("changes", ({"weights": 6}, {"params": replace(PARAMS, temperature=0.9)}))
def test_groups_of_other_weights_or_parameters_are_dropped(stored, changes):
    assert journal(stored, **changes).found(0) == {}
    assert journal(stored).found(0) == {}  # the file was replaced


def test_the_watcher_grades_in_any_order_and_stores_whole_groups(tmp_path):
    path = tmp_path / "b.part.jsonl"
    kept = journal(path)
    with Scorer(REWARD) as scorer:
        watcher = RolloutWatcher(scorer, [2, 6], journal=kept, attempt=0, group_size=2)
        watcher.known(0, Group(prompt=prompt(0), samples=(sample(0, 0), sample(0, 1, answer=4))))
        watcher.finished(1, prompt(6), sample(6, 1))
        watcher.finished(0, prompt(2), sample(2, 0, answer=4))
        watcher.poll()
        assert journal(path).found(0) == {}
        watcher.finished(1, prompt(6), sample(6, 0, answer=9))
        watcher.finished(0, prompt(2), sample(2, 1, answer=4))
        scores = watcher.scores()
    accuracy = {place: [score.parts["accuracy"] for score in found] for place, found in scores.items()}
    assert accuracy == {0: [1.0, 0.0], 2: [0.0, 0.0], 6: [0.0, 1.0]}


def test_whole_groups_are_stored_in_order_of_their_samples(tmp_path):
    path = tmp_path / "c.part.jsonl"
    with Scorer(REWARD) as scorer:
        watcher = RolloutWatcher(scorer, [6], journal=journal(path), attempt=3, group_size=2)
        watcher.finished(0, prompt(6), sample(6, 1))
        watcher.finished(0, prompt(6), sample(6, 0))
        watcher.scores()
    assert [one.index for one in journal(path).group(3, 6, prompt(6)).samples] == [0, 1]
