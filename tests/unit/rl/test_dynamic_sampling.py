"""Dynamic sampling: which groups are kept, how many prompts are asked, and that the spread over ranks is nothing."""

from dataclasses import replace

import numpy as np
import pytest

from r1train.config.schema_rl import DynamicSamplingConfig
from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.rl.dynamic_sampling import ScoredGroup, choose, collect, prompts_to_ask
from r1train.rollout.types import Group, Sample

MIXED = DynamicSamplingConfig(keep="mixed", oversample=1.5, max_tries=3)


def scored(place: int, rewards: list[float]) -> ScoredGroup:
    """A group with these rewards; NaN is a failed grader."""
    prompt = Prompt(f"p{place}", "t", "?", "!", {}, (0, 3, 4))
    samples = tuple(
        Sample(
            prompt_id=prompt.id,
            index=index,
            tokens=np.array([5, 1]),
            logprobs=np.zeros(2, dtype=np.float32),
            finish="eos",
            policy_version=0,
            text="x",
        )
        for index in range(len(rewards))
    )
    scores = tuple(Score(value, {}, "time-out" if value != value else None) for value in rewards)
    return ScoredGroup(place, Group(prompt=prompt, samples=samples), scores)


def rollouts(
    stream: str, wanted: int, cfg: DynamicSamplingConfig, ranks: int
) -> tuple[list, list[tuple[int, int, int]]]:
    """One rollout of every rank in lockstep. stream: "m" or "u" for each prompt of the order, mixed or uniform."""
    asked: list[tuple[int, int, int]] = []
    answers: list[list[list[ScoredGroup]]] = []

    def answer(start: int, count: int, attempt: int) -> list[list[ScoredGroup]]:
        places = range(start, start + count)
        groups = [scored(place, [0.0, 1.0 if stream[place % len(stream)] == "m" else 0.0]) for place in places]
        return [groups[rank::ranks] for rank in range(ranks)]

    def of_rank(rank: int) -> object:
        def ask(start: int, count: int, attempt: int) -> list[ScoredGroup]:
            if rank == 0:
                asked.append((start, count, attempt))
                answers.append(answer(start, count, attempt))
            return answers[attempt][rank]

        turn = iter(range(len(stream)))

        def gather(mine: list[tuple[int, bool]]) -> list[list[tuple[int, bool]]]:
            parts = [[(one.place, cfg.keep == "all" or one.is_mixed) for one in part] for part in answers[next(turn)]]
            assert parts[rank] == mine
            return parts

        return collect(ask, gather, wanted=wanted, cfg=cfg)

    return [of_rank(rank) for rank in range(ranks)], asked


def chosen(results: list) -> list[int]:
    return sorted(one.place for result in results for one in result.chosen)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_refills_until_there_are_enough(ranks):
    # Try 0 asks 1.5 * 4 = 6 and finds places 1, 4; 2 are missing: try 1 asks 3 and finds 6, 8.
    results, asked = rollouts("umuumumumm", 4, MIXED, ranks)
    assert asked == [(0, 6, 0), (6, 3, 1)]
    assert chosen(results) == [1, 4, 6, 8]
    for result in results:
        assert result.asked == 9
        assert result.gauges == {
            "sampling/tries": 2.0,
            "sampling/prompts": 9.0,
            "sampling/unused_groups": 5.0,
            "sampling/filled_groups": 0.0,
        }
    assert sum(len(result.generated) for result in results) == 9


def test_more_than_enough_keeps_the_first_in_the_order_of_prompts():
    results, asked = rollouts("mmummm", 4, MIXED, 2)
    assert asked == [(0, 6, 0)] and chosen(results) == [0, 1, 3, 4]
    assert [[one.place for one in result.chosen] for result in results] == [[0, 4], [1, 3]]
    assert results[0].gauges["sampling/unused_groups"] == 2.0


@pytest.mark.parametrize("ranks", [1, 2])
def test_tries_are_bounded_and_the_rollout_keeps_its_size(ranks):
    # 6 + 5 + 5 prompts with one mixed group at place 3: filled up with the first others.
    results, asked = rollouts("uuumuuuuuuuuuuuu", 4, MIXED, ranks)
    assert asked == [(0, 6, 0), (6, 5, 1), (11, 5, 2)]
    assert chosen(results) == [0, 1, 2, 3]
    assert results[0].gauges["sampling/filled_groups"] == 3.0 and results[0].asked == 16


def test_without_it_every_group_is_kept_in_one_try():
    results, asked = rollouts("uumu", 4, DynamicSamplingConfig(), 2)
    assert asked == [(0, 4, 0)] and chosen(results) == [0, 1, 2, 3]
    assert results[1].gauges == {
        "sampling/tries": 1.0,
        "sampling/prompts": 4.0,
        "sampling/unused_groups": 0.0,
        "sampling/filled_groups": 0.0,
    }


def test_mixed_looks_at_what_could_be_graded():
    nan = float("nan")
    assert scored(0, [0.0, 1.0, nan]).is_mixed
    assert not scored(0, [1.0, 1.0, nan]).is_mixed
    assert not scored(0, [nan, nan]).is_mixed


def test_mixed_is_about_right_and_wrong_not_about_length_or_format():
    """DAPO eq. 11: 0 < correct < G. The rewards of all three groups differ."""
    both, wrong, general = (scored(0, [1.0, 0.4]) for _ in range(3))

    def with_parts(group: ScoredGroup, *parts: dict[str, float]) -> ScoredGroup:
        return replace(group, scores=tuple(replace(s, parts=p) for s, p in zip(group.scores, parts, strict=True)))

    assert with_parts(both, {"accuracy": 1.0, "format": 1.0}, {"accuracy": 0.0, "format": 1.0}).is_mixed
    assert not with_parts(wrong, {"accuracy": 0.0, "overlong": 0.0}, {"accuracy": 0.0, "overlong": -0.6}).is_mixed
    assert with_parts(general, {"format": 1.0, "preference/a": 0.9}, {"format": 1.0, "preference/a": 0.3}).is_mixed


def test_small_parts():
    assert [prompts_to_ask(4, 1.0), prompts_to_ask(10, 1.1), prompts_to_ask(3, 1.5)] == [4, 11, 5]
    assert choose({3: True, 0: False, 1: True, 2: False}, 3) == {0, 1, 3}
