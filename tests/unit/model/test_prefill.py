"""Prompts are computed in pieces of bounded size, and nothing about a sample depends on the pieces."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from shapes import LLAMA, V2_LITE
from tiny import MODEL, YARN_MODEL, Tokens, config, prompts, set_expert_bias
from torch.profiler import ProfilerActivity, profile

from r1train.data.prompts import Prompt
from r1train.rollout.engine import SamplingParams

PARAMS = SamplingParams(samples_per_prompt=2, temperature=0.9, top_p=0.9, max_response_tokens=8, seed=1, name="pieces")
MODELS = {
    "latent": YARN_MODEL,
    "plain_query": V2_LITE,
    "grouped": LLAMA,
    "windows": replace(MODEL, attention_windows=(3, None, 5)),
}
LONG = 16384


def build(device, model):
    from r1train.model.build import build_model

    made = build_model(config("single", model=model), device)
    set_expert_bias(made)
    return made


def generate(model, asked: list[Prompt], params: SamplingParams = PARAMS, batch_size: int = 32) -> list:
    from r1train.rollout.native import NativeEngine

    engine = NativeEngine(model, Tokens(), batch_size=batch_size, record_routes=True)
    return [sample for group in engine.generate(asked, params, policy_version=0) for sample in group.samples]


def forwards(monkeypatch) -> list[tuple[int, int, int]]:
    """Filled with (rows, tokens, visible slots) of every forward from now on."""
    from r1train.rollout import steps

    seen, real = [], steps.stage_forward

    def spy(model, inputs, *, slots, **rest):
        seen.append((*slots.positions.shape, slots.visible))
        return real(model, inputs, slots=slots, **rest)

    monkeypatch.setattr(steps, "stage_forward", spy)
    return seen


def prompt_of(length: int, name: str = "long") -> Prompt:
    ids = torch.randint(3, 64, (length - 1,), generator=torch.Generator().manual_seed(length)).tolist()
    return Prompt(name, "t", "?", "!", {}, (0, *ids))


@pytest.mark.parametrize("scores", (1, 20, 130))
@pytest.mark.parametrize("kind", MODELS)
def test_pieces_give_what_one_forward_gives(device, monkeypatch, kind: str, scores: int):
    """Prompts of 12, 10, 8, 5 and 4 tokens, 1 to 130 scores per head: single tokens, parts of rows, and whole rows.

    20 scores: 4 + 2 + 2 + 2 + 1 + 1 tokens, 4 + 2 + 2 + 2, 4 + 2 + 2, 4 + 1, 4. 130: 11 + 1, 10, 8 and 5 together, 4.
    """
    from r1train.rollout import prefill

    model = build(device, MODELS[kind])
    expected = generate(model, prompts())
    heads = MODELS[kind].num_attention_heads
    monkeypatch.setattr(prefill, "SCORE_BYTES", 4 * heads * scores)
    seen = forwards(monkeypatch)
    found = generate(model, prompts())
    pieces = seen[: len(seen) - max(len(sample.tokens) for sample in found) + 1]
    assert len(pieces) == {1: 39, 20: 16, 130: 5}[scores]
    assert sum(rows * tokens for rows, tokens, _ in pieces) >= 39
    assert all(rows * tokens * visible <= scores or (rows, tokens) == (1, 1) for rows, tokens, visible in pieces)
    for sample, other in zip(found, expected, strict=True):
        assert sample.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(sample.logprobs, other.logprobs, atol=2e-6, rtol=0)
        if other.routes is not None:
            assert np.array_equal(np.sort(sample.routes), np.sort(other.routes))


def test_pieces_by_hand(monkeypatch):
    """200 scores: 12 tokens at once (144), then 8 and 8 (128), then 4; 20 tokens as 14 (196) and 6 (6 x 20 = 120)."""
    from r1train.rollout import prefill

    monkeypatch.setattr(prefill, "SCORE_BYTES", 2 * 4 * 200)
    ids = [tuple(range(length)) for length in (4, 8, 20, 12, 8)]
    ids[4] = tuple(range(1, 9))
    plan = prefill.Prefill.of([*ids, ids[0]], heads=2)
    assert [len(row) for row in plan.prompt_ids] == [20, 12, 8, 8, 4]
    assert plan.pieces == tuple(
        prefill.Piece(*one) for one in ((0, 1, 0, 14), (0, 1, 14, 20), (1, 2, 0, 12), (2, 5, 0, 8))
    )


@pytest.mark.parametrize(("rows", "tokens", "heads"), [(64, 4096, 16), (1, 131072, 8), (3, 131072, 128)])
def test_bound_of_what_once_needed_69_and_550_gigabytes(rows: int, tokens: int, heads: int):
    from r1train.rollout.prefill import SCORE_BYTES, Prefill

    plan = Prefill.of([(row, *range(tokens - 1)) for row in range(rows)], heads=heads)
    whole = rows * heads * tokens**2 * 4
    largest = max((p.last - p.first) * (p.stop - p.start) * p.stop * heads * 4 for p in plan.pieces)
    assert whole >= 64 * SCORE_BYTES and SCORE_BYTES // 2 < largest <= SCORE_BYTES
    # Each token of each prompt once, in order.
    for row in range(rows):
        spans = [(p.start, p.stop) for p in plan.pieces if p.first <= row < p.last]
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])] and spans[-1][1] == tokens


def test_a_rank_with_less_to_compute_joins_the_others(device, monkeypatch):
    """Another rank has seven pieces and this one two: five throw-away tokens, and the same samples."""
    from r1train.rollout import native

    model = build(device, YARN_MODEL)
    expected = generate(model, prompts())
    real = native.largest_counts
    monkeypatch.setattr(native, "largest_counts", lambda counts: real([counts[0], 7 * bool(counts[1])]))
    seen = forwards(monkeypatch)
    found = generate(model, prompts())
    assert seen[:7] == [(5, 12, 12), *[(1, 1, 1)] * 6]
    assert [sample.tokens.tolist() for sample in found] == [sample.tokens.tolist() for sample in expected]
    for sample, other in zip(found, expected, strict=True):
        assert np.array_equal(sample.routes, other.routes)


def peak_bytes(profiled: profile) -> int:
    """The most bytes that tensors made under the profiler held at a time: the allocator's own count."""
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@torch.no_grad()
def test_a_long_prompt_takes_bounded_memory(device, monkeypatch):
    """16,384 tokens on two heads: 2.1 GB of scores, 7.5 GB alive at once; bound to 32 MiB: under 160 MB."""
    from r1train.rollout import prefill

    shape = replace(
        LLAMA, num_layers=1, num_attention_heads=2, num_key_value_heads=1, rope_scaling=None,
        max_position_embeddings=32768,
    )  # fmt: skip
    model = build(device, shape)
    monkeypatch.setattr(prefill, "SCORE_BYTES", 32 << 20)
    seen = forwards(monkeypatch)
    greedy = replace(PARAMS, samples_per_prompt=1, temperature=0.0, top_p=1.0, max_response_tokens=4)
    asked = [prompt_of(LONG), prompt_of(40, "short")]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        found = generate(model, asked, greedy)
    assert 32 << 20 < peak_bytes(profiled) < 160e6
    assert all(rows * tokens * visible * 2 * 4 <= 32 << 20 for rows, tokens, visible in seen)
    for prompt, sample in zip(asked, found, strict=True):
        ids = torch.tensor([[*prompt.token_ids, *sample.tokens.tolist()]])
        logits = model(
            ids,
            torch.arange(ids.shape[1])[None],
            None,
            output_processor=lambda hidden_states, output_layer, context: output_layer(hidden_states[-5:])[0][:, 0],
        )
        logprobs = logits[-1 - len(sample.tokens) : -1].log_softmax(-1)
        assert sample.tokens.tolist() == logprobs.argmax(-1).tolist()
        np.testing.assert_allclose(sample.logprobs, logprobs.amax(-1), atol=1e-5, rtol=0)
