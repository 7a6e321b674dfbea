"""The RL loss of every algorithm: the same gradient and gauges in every layout, micro-batch size and packing."""

from pathlib import Path

import pytest
from assembly import assemble, load_ranks

TOLERANCE = 1e-5  # relative to the largest entry of each tensor
ALGORITHMS = ("grpo", "dr_grpo", "dapo", "gspo", "gspo_token", "cispo", "replay")
LAYOUTS = ("dp2", "ep2", "pp2", "tp2", "pp2_ep2")


def assert_same(found: list[dict], expected: dict) -> None:
    for rank in found:
        assert rank["num_tokens"] == expected["num_tokens"] == 99
        assert rank["gauges"] == pytest.approx(expected["gauges"], rel=1e-4, abs=1e-6)
    whole = assemble([expected["gradients"]])
    gradients = assemble([rank["gradients"] for rank in found], tolerance=TOLERANCE)
    assert gradients.keys() == whole.keys()
    # RL trains the main head, so MTP's own weights get none.
    worst = {
        key: float((gradients[key] - whole[key]).abs().max() / whole[key].abs().max().clamp(min=1e-12)) for key in whole
    }
    assert {key: error for key, error in worst.items() if not error <= TOLERANCE} == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(results: Path, layout: str, algorithm: str):
    single = load_ranks(results, "rl_gradient", "single")[0]
    ranks = load_ranks(results, "rl_gradient", layout)
    assert_same([rank[algorithm, "rows"] for rank in ranks], single[algorithm, "rows"])


@pytest.mark.parametrize("algorithm", ("grpo", "gspo", "replay"))
@pytest.mark.parametrize("layout", ("single", *LAYOUTS))
def test_dealing_by_tokens(results: Path, layout: str, algorithm: str):
    """Six samples and one on the two ranks before; then 34, 16, 9, 6 tokens and 28, 21, 13, with the same gradient."""
    single = load_ranks(results, "rl_gradient", "single")[0]
    ranks = [rank[algorithm, "dealt"] for rank in load_ranks(results, "rl_gradient", layout)]
    assert_same(ranks, single[algorithm, "rows"])
    expected = [{"0": 13, "1": 34, "2": 6, "3": 21, "4": 28, "5": 9, "6": 16}]
    if layout in ("dp2", "ep2", "pp2_ep2"):
        expected = [{"1": 34, "2": 6, "5": 9, "6": 16}, {"0": 13, "3": 21, "4": 28}]
    assert [rank["lengths"] for rank in ranks] == [expected[rank["dp_rank"]] for rank in ranks]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("packing", ["long_rows", "one_each"])
def test_packing_and_micro_batches(results: Path, packing: str, algorithm: str):
    single = load_ranks(results, "rl_gradient", "single")[0]
    assert_same([single[algorithm, packing]], single[algorithm, "rows"])


@pytest.mark.parametrize("layout", ("single", *LAYOUTS))
def test_replayed_experts_are_used(results: Path, layout: str):
    """99 response and 7 x 4 prompt tokens, less the 7 last ones, in 2 expert layers; most are nobody's own choice."""
    for rank in load_ranks(results, "rl_gradient", layout):
        gauges = rank["replay", "rows"]["gauges"]
        assert (gauges["replayed_share/update"], gauges["pairs"]) == (1.0, 240)
        assert gauges["flipped"] > 150


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_comparison_shows_something(results: Path, algorithm: str):
    """Some tokens are clipped, some left out, gradients are not zero, entropy is between certainty and ln 64."""
    single = load_ranks(results, "rl_gradient", "single")[0][algorithm, "rows"]
    gauges = single["gauges"]
    assert 0 < gauges["clip_share"] < 1
    assert (0 < gauges["left_out_share"] < 1) == (algorithm in ("gspo", "cispo"))
    assert 1.0 < gauges["entropy"] < 4.159
    assert gauges["logprob_gap_mean"] > 0.01
    moved = [key for key, values in assemble([single["gradients"]]).items() if values.abs().max() > 0]
    assert {"embedding.word_embeddings.weight", "output_layer.weight"} <= set(moved)
