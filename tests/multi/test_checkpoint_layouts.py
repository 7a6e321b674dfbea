"""Saving, resuming and moving to another layout: bit for bit where the layout stays, and exact weights where not."""

from pathlib import Path

import pytest
import torch
from assembly import assemble, load_ranks
from tiny import CHECKPOINT_STEP, SOURCES

LAYOUTS = tuple(SOURCES)
MOVES = [(layout, source) for layout, source in SOURCES.items() if source is not None]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_steps_are_bit_identical(results: Path, layout: str):
    for rank in load_ranks(results, "checkpoints", layout):
        assert [step for step, _, _ in rank["uninterrupted"]] == [1, 2, 3, 4, 5, 6]
        assert rank["resumed"] == rank["uninterrupted"][3:]
        state = rank["state"]
        assert (state.step, state.tokens, state.position) == (3, 3 * 8 * 32, 3 * 8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adamw_counts_on(results: Path, layout: str):
    for rank in load_ranks(results, "checkpoints", layout):
        assert rank["adam_resumed"] == {3.0}
        assert rank["adam_after"] == {6.0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_old_checkpoints_are_dropped(results: Path, layout: str):
    kept = [rank["kept"] for rank in load_ranks(results, "checkpoints", layout)]
    assert kept == [["step_00000002", CHECKPOINT_STEP]] * len(kept)
    assert not (results / f"run_{layout}" / "checkpoints" / "step_00000001").exists()


@pytest.mark.parametrize(("layout", "source"), MOVES)
def test_weights_move_to_another_layout(results: Path, layout: str, source: str):
    expected = assemble([rank["weights"] for rank in load_ranks(results, "checkpoints", source)])
    found = assemble([rank["loaded"] for rank in load_ranks(results, "checkpoints", layout)])
    assert found.keys() == expected.keys() and any(key.endswith("expert_bias") for key in found)
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize(("layout", "source"), MOVES)
def test_training_continues_in_another_layout(results: Path, layout: str, source: str):
    """Optimizer state moves too: AdamW without its moments would take other steps."""
    expected = load_ranks(results, "checkpoints", source)[0]["uninterrupted"][3:]
    for rank in load_ranks(results, "checkpoints", layout):
        for found, wanted in zip(rank["continued"]["steps"], expected, strict=True):
            assert found[0] == wanted[0]
            assert found[1] == pytest.approx(wanted[1], rel=1e-6)
            assert found[2] == pytest.approx(wanted[2], rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_average_of_the_weights_resumes_bit_for_bit(results: Path, layout: str):
    ranks = load_ranks(results, "checkpoints", layout)
    average, resumed = (assemble([rank[key] for rank in ranks]) for key in ("average", "average_resumed"))
    weights = assemble([rank["weights"] for rank in ranks])
    assert average.keys() == resumed.keys() == weights.keys()
    assert all(torch.equal(average[key], resumed[key]) for key in average)
    assert not torch.equal(average["output_layer.weight"], weights["output_layer.weight"])


@pytest.mark.parametrize(("layout", "source"), MOVES)
def test_average_of_the_weights_moves_to_another_layout(results: Path, layout: str, source: str):
    expected = assemble([rank["average"] for rank in load_ranks(results, "checkpoints", source)])
    found = assemble([rank["continued"]["average"] for rank in load_ranks(results, "checkpoints", layout)])
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoint_of_another_model_is_refused(results: Path, layout: str):
    """The dense layer lies on the first pipeline stage only, and yet every rank refuses with the same sentence."""
    messages = {rank["refusal"] for rank in load_ranks(results, "checkpoints", layout)}
    folder = results / f"run_{layout}" / "checkpoints" / CHECKPOINT_STEP
    assert messages == {
        f"{folder} is of another model: decoder.layers.0.mlp.linear_fc1.weight has shape [192, 64] in the checkpoint "
        "and [256, 64] in the model; and 1 more tensor differs. Fix: use the model config that the checkpoint was "
        "trained with, or another checkpoint"
    }
