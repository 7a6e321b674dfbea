"""Finished sequences make room for waiting ones; nothing about a sample depends on the company it was decoded in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import YARN_MODEL, Tokens, config, prompts, set_expert_bias

from r1train.rollout.engine import SamplingParams

PARAMS = SamplingParams(samples_per_prompt=6, temperature=0.9, top_p=0.9, max_response_tokens=20, seed=1, name="rows")


@pytest.fixture(scope="module")
def model(device):
    """eos is likely, so lengths differ much."""
    from r1train.model.build import build_model

    made = build_model(config("single", model=YARN_MODEL), device)
    set_expert_bias(made)
    with torch.no_grad():
        made.output_layer.weight[Tokens.eos_id] *= 2.5
    return made


@pytest.fixture(scope="module")
def at_once(model) -> list:
    return generate(model, batch_size=64)


def generate(model, *, params: SamplingParams = PARAMS, watcher=None, **options) -> list:
    from r1train.rollout.native import NativeEngine

    engine = NativeEngine(model, Tokens(), record_routes=True, **options)
    groups = engine.generate(prompts(), params, policy_version=3, watcher=watcher)
    return [sample for group in groups for sample in group.samples]


def forwards(model, monkeypatch, **options) -> list[tuple[int, int]]:
    """(rows, tokens each) of every forward of one generation."""
    from r1train.rollout import steps

    seen = []
    real = steps.stage_forward
    monkeypatch.setattr(steps, "stage_forward", lambda m, x, **rest: seen.append(tuple(x.shape)) or real(m, x, **rest))
    generate(model, **options)
    return seen


@pytest.mark.parametrize("batch_size", (1, 4, 7))
@pytest.mark.parametrize("check_every", (1, 5))
def test_same_samples_with_few_rows(model, at_once, batch_size: int, check_every: int):
    for found, expected in zip(generate(model, batch_size=batch_size, check_every=check_every), at_once, strict=True):
        assert (found.prompt_id, found.index) == (expected.prompt_id, expected.index)
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.finish == expected.finish
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)
        assert np.array_equal(np.sort(found.routes), np.sort(expected.routes))


def test_rows_are_refilled_while_others_go_on(model, at_once, monkeypatch):
    """30 samples on 8 rows: fewer steps than one batch after another, and hardly more than the tokens need."""
    seen = forwards(model, monkeypatch, batch_size=8)
    steps = [rows for rows, tokens in seen if tokens == 1]
    assert max(steps) == 8
    lengths = [len(sample.tokens) for sample in at_once]
    in_batches = sum(max(lengths[start : start + 8]) - 1 for start in range(0, 30, 8))
    needed = -(-sum(length - 1 for length in lengths) // 8)
    assert needed <= len(steps) < in_batches
    assert len(steps) <= needed + max(lengths)


def test_prompts_are_computed_once_per_refill(model, monkeypatch):
    """All at once: one forward over the five prompts, not over 30 samples."""
    seen = forwards(model, monkeypatch, batch_size=64)
    assert seen[0] == (5, 12)
    assert all(tokens == 1 for _, tokens in seen[1:])


def test_the_cache_grows_in_blocks(model, at_once, monkeypatch):
    """Prompts of at most 12 tokens and 20 more, blocks of 8 slots: 16, then 24, then 32; not 32 from the start."""
    from r1train.rollout import live

    monkeypatch.setattr(live, "CACHE_BLOCK", 8)
    capacities = []
    real = live.LiveRows.make_room

    def make_room(rows, steps):
        real(rows, steps)
        capacities.append(rows.cache.capacity)

    monkeypatch.setattr(live.LiveRows, "make_room", make_room)
    for found, expected in zip(generate(model, batch_size=64), at_once, strict=True):
        assert found.tokens.tolist() == expected.tokens.tolist()
    assert sorted(set(capacities)) == [16, 24, 32]
    assert capacities == sorted(capacities)


def test_samples_are_told_as_they_finish(model):
    class Log:
        def __init__(self) -> None:
            self.told: list = []
            self.polls: list[int] = []

        def finished(self, place, prompt, sample) -> None:
            assert prompt.id == sample.prompt_id == f"p{place}"
            self.told.append((place, sample.index, len(sample.tokens)))

        def poll(self) -> None:
            self.polls.append(len(self.told))

    log = Log()
    generate(model, batch_size=64, watcher=log)
    assert sorted((place, index) for place, index, _ in log.told) == [(p, i) for p in range(5) for i in range(6)]
    # All started together, so the short ones are told first, and long before the end.
    assert [length for *_, length in log.told] == sorted(length for *_, length in log.told)
    assert 0 < log.polls[len(log.polls) // 2] < 30


def test_a_budget_of_one_token(model):
    found = generate(model, params=replace(PARAMS, max_response_tokens=1), batch_size=4)
    assert [len(sample.tokens) for sample in found] == [1] * 30
    assert all((sample.finish == "eos") == (sample.tokens[0] == Tokens.eos_id) for sample in found)
