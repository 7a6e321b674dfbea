"""Loss, gradient norm, every gradient, expert biases and loads of every layout equal those of a single process."""

from pathlib import Path

import pytest
import torch
from assembly import assemble, load_ranks
from tiny import config

from r1train.plan.ranks import parameters_of_stages, pp_rank_of

TOLERANCE = 1e-5  # relative to the largest entry of each tensor
LAYOUTS = (
    "recompute",
    "dp2",
    "ep2",
    "ep4",
    "pp2",
    "vpp2",
    "pp4",
    "pp2_ep2",
    "vpp2_overlap",
    "tp2",
    "tp2_ep2",
    "tp2_pp2",
)
CASES = ("full", "uneven", "packed")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_gradients_and_biases(results: Path, layout: str, case: str):
    single = load_ranks(results, "parity", "single")[0][case]
    ranks = [rank[case] for rank in load_ranks(results, "parity", layout)]
    assert [rank["num_tokens"] for rank in ranks] == [single["num_tokens"]] * len(ranks)
    assert [rank["loss"] for rank in ranks] == pytest.approx([single["loss"]] * len(ranks), rel=1e-6)
    for name in ("mtp_loss", "sequence_loss"):
        assert [rank[name] for rank in ranks] == pytest.approx([single[name]] * len(ranks), rel=TOLERANCE)
    norms = [rank["gradient_norm"] for rank in ranks]
    assert norms == pytest.approx([single["gradient_norm"]] * len(ranks), rel=TOLERANCE)
    assert {rank["load"] for rank in ranks} == {single["load"]}

    expected = assemble([single["gradients"]])
    found = assemble([rank["gradients"] for rank in ranks], tolerance=TOLERANCE)
    assert found.keys() == expected.keys()
    worst = {key: float((found[key] - expected[key]).abs().max() / expected[key].abs().max()) for key in expected}
    assert {key: error for key, error in worst.items() if not error <= TOLERANCE} == {}

    biases, expected_biases = assemble([rank["bias"] for rank in ranks]), assemble([single["bias"]])
    assert biases.keys() == expected_biases.keys()
    assert all(torch.equal(biases[key], expected_biases[key]) for key in biases)


@pytest.mark.parametrize("case", CASES)
def test_the_comparison_covers_the_whole_model(results: Path, case: str):
    """Every part has a gradient that is not zero, and the biases moved by the rate, up and down."""
    single = load_ranks(results, "parity", "single")[0][case]
    gradients = assemble([single["gradients"]])
    assert all(values.abs().max() > 0 for values in gradients.values())
    layers = ("decoder.layers.0.", "decoder.layers.1.", "decoder.layers.2.", "mtp.layers.0.transformer_layer.")
    attention = ("linear_q_down_proj", "linear_q_up_proj", "q_layernorm", "linear_kv_down_proj", "linear_kv_up_proj")
    wanted = {f"{layer}self_attention.{name}.weight" for layer in layers for name in (*attention, "kv_layernorm")}
    wanted |= {f"{layer}mlp.router.weight" for layer in layers[1:]}
    wanted |= {f"{layer}mlp.experts.experts.linear_fc{i}.weight" for layer in layers[1:] for i in (1, 2)}
    wanted |= {f"{layer}mlp.shared_experts.linear_fc{i}.weight" for layer in layers[1:] for i in (1, 2)}
    wanted |= {"embedding.word_embeddings.weight", "output_layer.weight", "mtp.layers.0.eh_proj.weight"}
    assert wanted <= gradients.keys()
    assert gradients["decoder.layers.1.mlp.experts.experts.linear_fc1.weight"].shape == (8, 48, 64)

    start = 0.1 * (torch.arange(8) % 3 - 1).float()
    for values in assemble([single["bias"]]).values():
        assert {-0.001, 0.001} <= {round(change, 6) for change in (values - start).tolist()}
    # The data-parallel ranks of the uneven case count 2 x (32 + 21) and 2 x (5 + 11) tokens; a packed sample of n
    # tokens counts n - 2, and so the ranks 58 + 45 and 62 + 18.
    assert single["num_tokens"] == {"full": 8 * 32, "uneven": 138, "packed": 183}[case]
    assert single["gradient_norm"] > 0
    # Random predictions over 64 tokens (ln 64 = 4.16), of other targets than the main head's; 1 is perfect balance.
    assert 3.5 < single["mtp_loss"] < 6 and single["mtp_loss"] != single["loss"]
    assert 1 < single["sequence_loss"] < 2
    # Three MoE layers, the last of them MTP's, each with two experts per token; padding is not counted.
    routed = {"full": 2 * 8 * 32, "uneven": 2 * 8 * 32, "packed": 2 * (64 + 64 + 49 + 26)}[case]
    assert [sum(layer) for layer in single["load"]] == [routed] * 3


@pytest.mark.parametrize("layout", ("single", *LAYOUTS))
def test_parameters_per_rank_are_the_planned_ones(results: Path, layout: str):
    cfg = config(layout)
    planned = parameters_of_stages(cfg)
    found = [rank["parameters"] for rank in load_ranks(results, "parity", layout)]
    assert found == [planned[pp_rank_of(cfg, rank)].total for rank in range(cfg.parallel.world_size)]
