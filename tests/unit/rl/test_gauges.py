"""Gauges and stops: entropy, quantiles of ratios, rollout statistics, overlong shaping, reflection words, limits."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from r1train.config.schema_rl import OverlongConfig, StopIf
from r1train.data.prompts import Prompt
from r1train.reward.base import Score
from r1train.rl.histogram import RatioHistogram
from r1train.rl.overlong import is_trained, overlong_penalty, shaped_score
from r1train.rl.reflection import reflection_counts
from r1train.rl.statistics import RolloutSums, as_gauges, local_sums, quantile
from r1train.rl.stops import GaugeStop, beyond_limits
from r1train.rollout.types import Group, Sample


def sample(length: int, *, text: str = "", finish: str = "eos", index: int = 0) -> Sample:
    return Sample(
        prompt_id="p",
        index=index,
        tokens=np.arange(length),
        logprobs=np.zeros(length, dtype=np.float32),
        finish=finish,
        policy_version=0,
        text=text,
    )


def test_ratio_quantiles():
    histogram = RatioHistogram("cpu")
    ratios = torch.cat([torch.full((980,), 1.0), torch.full((15,), 1.2), torch.full((20,), 0.5), torch.tensor([50.0])])
    keep = torch.ones(len(ratios)).bool()
    keep[-1] = False
    histogram.add(ratios[:500].log(), keep[:500])
    histogram.add(ratios[500:].log(), keep[500:])
    found = histogram.quantiles("ratio")
    assert found["ratio/p50"] == 1.0
    assert math.log(found["ratio/p01"]) == pytest.approx(math.log(0.5), rel=0.04)
    assert math.log(found["ratio/p99"]) == pytest.approx(math.log(1.2), rel=0.04)
    assert math.log(found["ratio/max"]) == pytest.approx(math.log(1.2), rel=0.04)


def test_ratio_quantiles_of_nothing_and_of_extremes():
    histogram = RatioHistogram("cpu")
    assert histogram.quantiles("r") == {"r/p01": 1.0, "r/p50": 1.0, "r/p99": 1.0, "r/max": 1.0}
    histogram.add(torch.tensor([-20.0, 1e-7, 20.0]), torch.ones(3).bool())
    found = histogram.quantiles("r")
    assert (found["r/p50"], found["r/p01"], found["r/max"]) == (
        1.0,
        pytest.approx(math.exp(-20.0), rel=1.0),
        pytest.approx(math.exp(20.0), rel=1.0),
    )


def test_overlong_vectors():
    # DAPO section 4.1: 16384 expected tokens and a buffer of 4096.
    lengths = {1: 0.0, 16384: 0.0, 17408: -0.25, 18432: -0.5, 20480: -1.0, 30000: -1.0}
    assert {n: overlong_penalty(n, budget=20480, buffer=4096) for n in lengths} == lengths


def test_overlong_shapes_the_score():
    penalty = OverlongConfig(rule="penalty", buffer_tokens=4)
    score = Score(1.5, {"accuracy": 1.0, "format": 0.5}, None)
    shaped = shaped_score(sample(9), score, penalty, budget=10)
    assert shaped == Score(0.75, {"accuracy": 1.0, "format": 0.5, "overlong": -0.75}, None)
    assert shaped_score(sample(9), score, OverlongConfig(), budget=10) is score
    failed = shaped_score(sample(9), Score(float("nan"), {}, "time-out"), penalty, budget=10)
    assert math.isnan(failed.value) and failed.error == "time-out"


def test_overlong_filtering_leaves_out_truncated_samples_only():
    mask = OverlongConfig(rule="mask")
    assert is_trained(sample(9), mask) and not is_trained(sample(9, finish="length"), mask)
    assert is_trained(sample(9, finish="length"), OverlongConfig(rule="penalty", buffer_tokens=4))


def test_reflection_words():
    text = "Wait, 3+4=7. However, I check: checked? No mistake, but WAIT. Buttons await an error."
    assert reflection_counts(text) == {"wait": 2, "however": 1, "check": 1, "mistake": 1, "but": 1, "error": 1}
    assert reflection_counts("") == {}


def rollout_gauges() -> dict[str, float]:
    """Two ranks: a group with rewards (0, 2) and one with (1, 1, failed), 5 samples in all."""
    prompt = Prompt("p", "t", "?", "!", {}, (0,))

    def good(value: float, accuracy: float) -> Score:
        return Score(value, {"accuracy": accuracy, "format": 1.0, "overlong": -0.5}, None)

    mixed = Group(prompt=prompt, samples=(sample(4, text="wait, wait"), sample(8, finish="length")))
    equal = Group(prompt=prompt, samples=tuple(sample(n, text="but") for n in (2, 6, 10)))
    total = RolloutSums()
    total.add(local_sums([mixed], [replace(good(0.0, 0.0), timed_out=True), good(2.0, 1.0)]))
    total.add(local_sums([equal], [good(1.0, 1.0), good(1.0, 1.0), Score(float("nan"), {"format": 1.0}, "crash")]))
    return as_gauges(total)


def test_rollout_gauges_by_hand():
    found = rollout_gauges()
    words = {name: value for name, value in found.items() if name.startswith("reflection_words/")}
    assert {name: value for name, value in words.items() if value} == {
        "reflection_words/wait": 0.4,
        "reflection_words/but": 0.6,
    }
    assert len(words) == 10
    assert {name: value for name, value in found.items() if name not in words} == pytest.approx(
        {
            "reward": 1.0,
            "reward/accuracy": 0.75,
            "reward/format": 1.0,
            "reward/language": 0.0,
            "reward/overlong": -0.5,
            "grader_errors": 1.0,
            "grader_timeouts": 1.0,
            "group_reward_std": 0.5,  # 1.0 and 0.0
            "mixed_groups_share": 0.5,
            "zero_std_groups_share": 0.5,
            "response_tokens": 6.0,
            "response_tokens/p10": 2.0,
            "response_tokens/p50": 6.0,
            "response_tokens/p90": 10.0,
            "response_tokens/max": 10.0,
            "truncated_share": 0.2,
            "reflection_words": 1.0,
        }
    )


def test_quantiles_are_values_that_occur():
    ordered = list(range(1, 101))
    assert [quantile(ordered, share) for share in (0.0, 0.1, 0.5, 0.905, 1.0)] == [1.0, 10.0, 50.0, 91.0, 100.0]


def test_limits_name_gauge_value_and_limit():
    limits = StopIf(logprob_gap_mean_above=0.1, entropy_below=0.2, truncated_share_above=0.5)
    assert beyond_limits({"logprob_gap_mean": 0.1, "truncated_share": 0.5, "entropy": 0.2, "kl": 9.0}, limits) == []
    assert beyond_limits({"logprob_gap_mean": 0.25, "entropy": 0.125}, limits) == [
        "logprob_gap_mean = 0.25 is above 0.1 (rl.stop_if.logprob_gap_mean_above)",
        "entropy = 0.125 is below 0.2 (rl.stop_if.entropy_below)",
    ]
    assert beyond_limits({"entropy": float("nan")}, limits) == ["entropy = nan is below 0.2 (rl.stop_if.entropy_below)"]
    assert beyond_limits({"kl": 1e9}, StopIf()) == []
    assert beyond_limits({"flipped_experts_share": 0.3}, StopIf(flipped_experts_share_above=0.25)) == [
        "flipped_experts_share = 0.3 is above 0.25 (rl.stop_if.flipped_experts_share_above)"
    ]
    rewards = StopIf(reward_below=-0.25, grader_errors_above=0, response_tokens_above=30.0)
    assert beyond_limits({"reward": -0.25, "grader_errors": 0.0, "response_tokens": 30.0}, rewards) == []
    assert beyond_limits({"reward": -0.5, "grader_errors": 1.0, "response_tokens": 31.0}, rewards) == [
        "response_tokens = 31 is above 30 (rl.stop_if.response_tokens_above)",
        "grader_errors = 1 is above 0 (rl.stop_if.grader_errors_above)",
        "reward = -0.5 is below -0.25 (rl.stop_if.reward_below)",
    ]
    assert GaugeStop.exit_code == 1
    assert set(vars(replace(limits))) == {
        "logprob_gap_mean_above",
        "logprob_gap_max_above",
        "logprob_gap_k3_above",
        "truncated_share_above",
        "response_tokens_above",
        "grader_errors_above",
        "reward_below",
        "flipped_experts_share_above",
        "entropy_below",
        "kl_above",
    }
