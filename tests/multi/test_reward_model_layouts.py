"""A reward model's scores, loss and gradients are the same in every layout."""

from pathlib import Path

import pytest
from assembly import assemble, load_ranks

LAYOUTS = ("dp2", "ep2", "pp2", "tp2")
TOLERANCE = 1e-5  # relative to the largest entry of each tensor


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(results: Path, layout: str):
    (single,) = load_ranks(results, "reward_model", "single")
    ranks = load_ranks(results, "reward_model", layout)
    scores: dict[str, float] = {}
    for rank in ranks:
        assert rank["pairs"] == 5
        assert rank["logs"] == pytest.approx(single["logs"], rel=1e-5, abs=1e-6)
        scores |= rank["scores"]
    assert scores == pytest.approx(single["scores"], abs=1e-5) and len(set(scores.values())) == 10
    whole = assemble([single["gradients"]])
    gradients = assemble([rank["gradients"] for rank in ranks], tolerance=TOLERANCE)
    assert gradients.keys() == whole.keys() and "value_head.weight" in whole
    worst = {
        key: float((gradients[key] - whole[key]).abs().max() / whole[key].abs().max().clamp(min=1e-12)) for key in whole
    }
    assert {key: error for key, error in worst.items() if not error <= TOLERANCE} == {}


def test_the_comparison_shows_something(results: Path):
    (single,) = load_ranks(results, "reward_model", "single")
    assert 0 < single["logs"]["pair_accuracy"] < 1
    whole = assemble([single["gradients"]])
    assert whole["value_head.weight"].abs().max() > 0 and whole["embedding.word_embeddings.weight"].abs().max() > 0
    # Neither the language model's head nor MTP has a part in a score.
    assert whole["output_layer.weight"].abs().max() == 0
