"""A dense model with a tied head gives the same loss, gradients, step and samples in every layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from assembly import assemble, load_ranks
from shapes import dense_config

from r1train.plan.ranks import parameters_of_stages, pp_rank_of

LAYOUTS = ("dp2", "pp2", "tp2")
TABLE = "embedding.word_embeddings.weight"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients(results: Path, layout: str):
    single = load_ranks(results, "dense", "single")[0]
    ranks = load_ranks(results, "dense", layout)
    assert [rank["loss"] for rank in ranks] == pytest.approx([single["loss"]] * len(ranks), rel=1e-6)
    expected = assemble([single["gradients"]])
    # Replicas of the table (first and last stage) have to agree too: its gradient is summed over both uses.
    found = assemble([rank["gradients"] for rank in ranks], tolerance=1e-5)
    assert found.keys() == expected.keys() and TABLE in found and "output_layer.weight" not in found
    worst = {key: float((found[key] - expected[key]).abs().max() / expected[key].abs().max()) for key in expected}
    assert {key: error for key, error in worst.items() if not error <= 1e-5} == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_after_a_step(results: Path, layout: str):
    """The tied table counts once in the gradient norm, and its copies take the same step."""
    single = load_ranks(results, "dense", "single")[0]
    ranks = load_ranks(results, "dense", layout)
    assert [rank["grad_norm"] for rank in ranks] == pytest.approx([single["grad_norm"]] * len(ranks), rel=1e-5)
    found = assemble([rank["after_step"] for rank in ranks], tolerance=1e-6)
    for key, values in assemble([single["after_step"]]).items():
        # Adam's first step is the learning rate, 1e-3, whatever the gradient; where that is almost 0 rounding shows.
        assert (found[key] - values).abs().mean() < 1e-6, key


@pytest.mark.parametrize("layout", ("single", *LAYOUTS))
def test_parameters_per_rank_are_the_planned_ones(results: Path, layout: str):
    cfg = dense_config(layout)
    planned = parameters_of_stages(cfg)
    found = [rank["parameters"] for rank in load_ranks(results, "dense", layout)]
    assert found == [planned[pp_rank_of(cfg, rank)].total for rank in range(cfg.parallel.world_size)]


@pytest.mark.parametrize("layout", ("single", *LAYOUTS))
def test_samples_and_their_logprobs(results: Path, layout: str):
    reference = load_ranks(results, "dense", "single")[0]["generated"]
    ranks = load_ranks(results, "dense", layout)
    generated = ranks[0]["generated"]
    assert sorted(generated) == ["p0", "p1", "p2", "p3", "p4"]
    for prompt, samples in generated.items():
        for sample, expected in zip(samples, reference[prompt], strict=True):
            assert sample.tokens.tolist() == expected.tokens.tolist()
            np.testing.assert_allclose(sample.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    forwards = [rank["forward"] for rank in ranks if rank["forward"]]
    assert len(forwards) == {"single": 1, "dp2": 2, "pp2": 1, "tp2": 2}[layout]
    for (prompt, index), logprobs in (item for forward in forwards for item in forward.items()):
        torch.testing.assert_close(torch.from_numpy(generated[prompt][index].logprobs), logprobs, atol=1e-5, rtol=0)
