"""Steps of static shapes, which a GPU replays as graphs, against steps as in training: same samples, on CPU."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shapes import DENSE, MOONLIGHT, V2_LITE
from tiny import MODEL, YARN_MODEL, Tokens, config, prompts, set_expert_bias

from r1train.rollout.engine import SamplingParams

PARAMS = SamplingParams(samples_per_prompt=6, temperature=0.9, top_p=0.9, max_response_tokens=20, seed=1, name="rows")
SEED_2 = replace(PARAMS, seed=2)
ROUNDING = 1e-5  # of log-probabilities in fp32, from logits that reach 40 where eos is made likely
MODELS = {
    "yarn": YARN_MODEL,
    "windows": replace(MODEL, attention_windows=(3, None, 5)),
    "v2_lite": V2_LITE,
    "moonlight": MOONLIGHT,
    **DENSE,
}
# What a step must not call: methods and operators that read values, and operators that copy from the host.
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
OF_VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "unique2", "repeat_interleave", "bincount")
FROM_HOST = ("lift_fresh", "lift_fresh_copy", "scalar_tensor", "pin_memory")
EOS = {"llama": 20.0, "qwen": 40.0}


def build(device, name: str):
    """eos is likely, so lengths differ much."""
    from r1train.model.build import build_model

    made = build_model(config("single", model=MODELS[name]), device)
    set_expert_bias(made)
    with torch.no_grad():
        head = made.output_layer.weight
        (made.embedding.word_embeddings.weight if head is None else head)[Tokens.eos_id] *= EOS.get(name, 2.5)
    return made.eval()


@pytest.fixture(scope="module")
def model(device):
    return build(device, "yarn")


@pytest.fixture
def engine(monkeypatch) -> Callable:
    """engine(model, static=, ...) -> NativeEngine whose steps are of that kind; runner: what runs static ones."""
    from r1train.rollout import native, steps
    from r1train.rollout.graphs import Plain

    def make(model, *, static: bool, runner=None, **options):
        def choose(decoder, *, batch_size, cuda_graphs):
            assert cuda_graphs
            if not static:
                return steps.TrainingSteps(decoder)
            return steps.StaticSteps(decoder, runner or Plain(), largest=batch_size)

        monkeypatch.setattr(native, "choose_steps", choose)
        return native.NativeEngine(model, Tokens(), record_routes=True, **options)

    return make


def drawn(engine, params: SamplingParams = PARAMS) -> list:
    return [sample for group in engine.generate(prompts(), params, policy_version=3) for sample in group.samples]


def assert_same(found: list, expected: list) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.prompt_id, ours.index, ours.finish) == (theirs.prompt_id, theirs.index, theirs.finish)
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=ROUNDING, rtol=0)
        assert (ours.routes is None) == (theirs.routes is None)
        if ours.routes is not None:
            assert np.array_equal(np.sort(ours.routes), np.sort(theirs.routes))


@pytest.mark.parametrize("name", MODELS)
def test_same_samples(device, engine, name: str):
    """30 samples on 16 rows: refilled, then shrunk."""
    made = build(device, name)
    expected = drawn(engine(made, static=False, batch_size=16))
    assert len({len(sample.tokens) for sample in expected}) > 3
    assert_same(drawn(engine(made, static=True, batch_size=16, check_every=3)), expected)


@pytest.mark.parametrize("batch_size", (1, 7, 64))
@pytest.mark.parametrize("check_every", (1, 5))
def test_same_samples_with_other_rows(model, engine, batch_size: int, check_every: int):
    expected = drawn(engine(model, static=False, batch_size=64))
    assert_same(drawn(engine(model, static=True, batch_size=batch_size, check_every=check_every)), expected)


@pytest.mark.parametrize("kept", (0, 1 << 30))
def test_a_cache_that_grows_and_one_that_is_kept(model, engine, monkeypatch, kept: int):
    """Blocks of 8 slots: a cache that may not be kept grows from 16; else it has all 11 + 1 + 20 + 1 slots at once."""
    from r1train.rollout import live, steps

    monkeypatch.setattr(live, "CACHE_BLOCK", 8)
    monkeypatch.setattr(steps, "KEPT_BYTES", kept)
    monkeypatch.setattr(steps, "FEWEST_ROWS", 2)
    expected = [drawn(engine(model, static=False, batch_size=64), params) for params in (PARAMS, SEED_2)]
    static, capacities, entries = engine(model, static=True, batch_size=64), [], []
    real = steps.Decoder.step

    def step(decoder, rows, *args, **kwargs):
        capacities.append(rows.cache.capacity)
        entries.append((rows.cache.entries.data_ptr(), len(rows.jobs), kwargs["visible"]))
        real(decoder, rows, *args, **kwargs)

    monkeypatch.setattr(steps.Decoder, "step", step)
    assert_same(drawn(static), expected[0])
    assert sorted(set(capacities)) == ([40] if kept else [16, 24, 32])
    sizes = {rows for _, rows, _ in entries}
    assert max(sizes) == 32 and len(sizes) > 1 and all(rows.bit_count() == 1 for rows in sizes)
    assert {visible for *_, visible in entries} <= {8, 16, 24, 32, 40}
    # The second call: where it is kept, on the same tensors, and nothing is left of the first.
    before = {address for address, *_ in entries}
    entries.clear()
    assert_same(drawn(static, SEED_2), expected[1])
    if kept:
        assert {address for address, *_ in entries} == before and len(before) == 1


@pytest.fixture
def recorder(device, monkeypatch):
    """Graphs whose capture keeps the tensors that a step had then, and whose replay computes on those."""
    from r1train.rollout.graphs import Graphs

    class Recorder(Graphs):
        def _capture(self, step: partial) -> SimpleNamespace:
            self.captures += 1
            rows, *rest = step.args
            return SimpleNamespace(replay=partial(step.func, copy(rows), *rest, **step.keywords))

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return Recorder()


@pytest.mark.parametrize("kept", (0, 1 << 30))
def test_graphs_are_replayed_where_they_were_captured(model, engine, recorder, monkeypatch, kept: int):
    """A replay on tensors that are no longer the rows' would change nothing that anybody reads."""
    from r1train.rollout import live, steps

    monkeypatch.setattr(live, "CACHE_BLOCK", 8)
    monkeypatch.setattr(steps, "KEPT_BYTES", kept)
    monkeypatch.setattr(steps, "FEWEST_ROWS", 2)
    static, captures = engine(model, static=True, runner=recorder, batch_size=16, check_every=4), []
    for params in (PARAMS, SEED_2, replace(PARAMS, max_response_tokens=7), replace(PARAMS, top_p=0.5), PARAMS):
        assert_same(drawn(static, params), drawn(engine(model, static=False, batch_size=64), params))
        captures.append(recorder.captures)
    assert captures[0] > 2
    # Kept: the second call needs what it has not had of sizes, the last one nothing. Not kept: all anew.
    assert (captures[-1] == captures[-2]) == bool(kept)


def test_graphs_of_weights_that_moved_are_captured_anew(model, engine, recorder):
    static = engine(model, static=True, runner=recorder, batch_size=64, check_every=4)
    expected = drawn(static)
    before = recorder.captures
    assert_same(drawn(static), expected)
    assert recorder.captures == before > 0
    weight = model.decoder.layers[1].mlp.router.weight
    old = weight.data
    weight.data = old.clone()
    assert_same(drawn(static), expected)
    assert recorder.captures == 2 * before
    weight.data = old


def test_another_budget_and_more_rows_make_new_room(model, engine):
    """Calls of one engine with a short budget, a long one, and greedy, against an engine of its own for each."""
    static = engine(model, static=True, batch_size=64)
    calls = (
        replace(PARAMS, samples_per_prompt=1, max_response_tokens=4),
        replace(PARAMS, samples_per_prompt=5, max_response_tokens=24),
        replace(PARAMS, samples_per_prompt=2, max_response_tokens=1),
        replace(PARAMS, samples_per_prompt=1, temperature=0.0, top_p=1.0),
    )
    for params in calls:
        found = drawn(static, params)
        assert_same(found, drawn(engine(model, static=False, batch_size=64), params))


def test_a_step_leaves_every_tensor_where_it_is(model, engine, monkeypatch):
    """What a graph needs: no step, harvest, refill or shrinking puts another tensor in a row's place."""
    from r1train.rollout import steps

    places = []
    real = steps.StaticSteps.run

    def run(self, rows, *args):
        for _ in range(2):
            places.append(tuple(tensor.data_ptr() for tensor in rows.tensors()))
            if len(places) % 2:
                real(self, rows, *args)

    monkeypatch.setattr(steps.StaticSteps, "run", run)
    drawn(engine(model, static=True, batch_size=16))
    assert len(places) > 10 and len(set(places)) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_step_asks_nothing_of_the_host(device, engine, monkeypatch, name: str):
    """No value comes back, no shape depends on one, nothing is copied from the host: what a capture would refuse."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from r1train.rollout import steps

    called = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    real = steps.Decoder.step

    def step(*args, **kwargs):
        with Names(), pytest.MonkeyPatch.context() as patch:
            for method in READS:
                patch.setattr(torch.Tensor, method, noting(method))
            real(*args, **kwargs)

    def noting(method: str) -> Callable:
        read = getattr(torch.Tensor, method)
        return lambda tensor, *args: called.add(method) or read(tensor, *args)

    monkeypatch.setattr(steps.Decoder, "step", step)
    # As on a GPU: deterministic algorithms, which this CPU asks for, would route differently.
    torch.use_deterministic_algorithms(False)
    try:
        drawn(engine(build(device, name), static=True, batch_size=16), replace(PARAMS, samples_per_prompt=1))
        assert {"searchsorted", "index_put_"} <= called
        assert not called & {*READS, *OF_VALUES, *FROM_HOST}
        if name not in DENSE:
            drawn(engine(build(device, name), static=False, batch_size=16), replace(PARAMS, samples_per_prompt=1))
            assert called & {*READS}  # megatron-core's dispatcher
    finally:
        torch.use_deterministic_algorithms(True)


def test_weights_written_in_place_are_seen(model, engine):
    static = engine(model, static=True, batch_size=64)
    first = drawn(static)
    weight = model.decoder.layers[1].mlp.experts.local_experts[3].linear_fc2.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(-3.0)
        expected = drawn(engine(model, static=False, batch_size=64))
        assert_same(drawn(static), expected)
        assert any(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(first, expected, strict=True))
    finally:
        with torch.no_grad():
            weight.copy_(before)
