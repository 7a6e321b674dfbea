"""Decode steps replayed as CUDA graphs, with Transformer Engine in bf16: the static step's samples, bit for bit.

40 samples of 1 to 150 tokens on 16 rows with looks every 4 steps: rows are refilled, then the batch shrinks to 8 rows,
and two sizes of the cache are visible.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.gpu1

WORKER = Path(__file__).parent / "worker" / "graphs.py"
MODELS = ("v3", "buffer", "unrecorded", "windows", "softmax", "dense")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the worker saved, by model. megatron-core's compiled functions are compiled, as in a run."""
    import torch

    out = tmp_path_factory.mktemp("graphs") / "out.pt"
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "0"}
    command = [sys.executable, str(WORKER), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return torch.load(out, weights_only=False)


def assert_identical(found: list, expected: list) -> None:
    assert len(found) == len(expected) == 40
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.prompt_id, ours.index, ours.finish) == (theirs.prompt_id, theirs.index, theirs.finish)
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert np.array_equal(ours.logprobs, theirs.logprobs)
        if theirs.routes is None:
            assert ours.routes is None
        else:
            assert np.array_equal(ours.routes, theirs.routes)


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_draws_what_its_step_draws(outputs: dict, name: str):
    found = outputs[name]
    lengths = [len(sample.tokens) for sample in found["graph"]]
    assert len(set(lengths)) > 8 and max(lengths) > 60, lengths
    assert_identical(found["graph"], found["static"])
    assert_identical(found["graph_short"], found["static_short"])
    assert_identical(found["graph_again"], found["graph"])


def test_experts_are_multiplied_together_where_they_lie_together(outputs: dict):
    assert [outputs[name]["stacked"] for name in MODELS if name != "dense"] == [False, True, False, False, False]


@pytest.mark.parametrize("name", MODELS)
def test_static_steps_are_as_near_to_the_trainer_as_steps_of_training(outputs: dict, name: str):
    """Mean distance of log-probabilities: 0.007 to 0.022 with bf16 on a CPU."""
    found = outputs[name]
    gaps = {}
    for kind in ("training", "graph"):
        pairs = zip(found[kind], found["trainer"][kind], strict=True)
        gaps[kind] = np.concatenate([np.abs(sample.logprobs - trainer) for sample, trainer in pairs])
    assert gaps["graph"].mean() < 0.05, gaps["graph"].mean()
    assert gaps["graph"].mean() < 1.5 * gaps["training"].mean() + 1e-3, {k: gap.mean() for k, gap in gaps.items()}


@pytest.mark.parametrize("name", MODELS)
def test_graphs_draw_what_steps_of_training_draw(outputs: dict, name: str):
    """The same random numbers: until rounding moves one over the edge between two tokens, the same tokens.

    Of 256 nearly equally likely tokens, with log-probabilities 0.02 apart, the edges lie about 0.02 * 8 / 256 apart,
    so that one draw in six may differ (0.02 / 256 * 8 * 256); steps that compute something else differ in nearly all.
    """
    differing, compared, distances = 0, 0, []
    for ours, theirs in zip(outputs[name]["graph"], outputs[name]["training"], strict=True):
        together = min(len(ours.tokens), len(theirs.tokens))
        differ = np.flatnonzero(ours.tokens[:together] != theirs.tokens[:together])
        until = differ[0] if len(differ) else together
        differing += len(differ) > 0
        compared += until + (len(differ) > 0)
        distances.append(np.abs(ours.logprobs[:until] - theirs.logprobs[:until]))
    print(f"{name}: {differing} of {compared} draws differ")
    assert differing < 0.16 * compared, (differing, compared)
    assert np.concatenate(distances).mean() < 0.03


@pytest.mark.parametrize("name", MODELS)
def test_weights_changed_in_place_are_seen(outputs: dict, name: str):
    found = outputs[name]
    assert_identical(found["graph_changed"], found["static_changed"])
    pairs = zip(found["graph"], found["graph_changed"], strict=True)
    assert any(not np.array_equal(before.tokens, after.tokens) for before, after in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_graphs_are_kept_until_the_weights_move(outputs: dict, name: str):
    """Later calls of the same sizes capture nothing: their tensors and the weights are where they were."""
    found = outputs[name]
    first, second, changed, moved = found["captures"]
    # 16 and 8 rows; 128 and 256 slots.
    assert 2 <= first <= 4
    assert first < second <= 2 * first + 2  # the other budget and top-p have graphs of their own
    assert changed - second <= 2  # the changed weights' samples may need a size that the others did not
    assert moved > changed
    assert_identical(found["graph_moved"], found["graph_changed"])
