"""Pipeline layouts that pass and one that does not, and how they are read."""

import pytest

from r1train.config.layout import parse_layout

PRETRAIN = ("stage=pretrain",)
PP2 = ("parallel.world_size=4", "cluster.processes_per_node=4", "parallel.pp=2")
FOUR_LAYERS = "model.num_layers=4"


@pytest.mark.parametrize(
    "layout", ['"Ett|ttmL"', '"Et*2|t*2,mL"', '"E(t)*2|ttmL"', '"Et|t|t|tmL"', '"Ett|tt||mL"', '"E|t|t|ttmL"']
)
def test_good_layouts_pass(problems, layout):
    batch = "stage.batch_size=32"  # two rounds of micro-batches, which virtual stages need
    assert problems(*PRETRAIN, *PP2, FOUR_LAYERS, batch, f"parallel.pp_layout={layout}") == {}


def test_loss_must_be_in_the_last_stage(problems):
    assert "one L (loss)" in problems(*PRETRAIN, *PP2, 'parallel.pp_layout="Ett|tmL||"')["parallel.pp_layout"].what


def test_parse_layout_unrolls_as_megatron_does():
    assert parse_layout("Ettt|(tt|)*29,m|L") == ("Ettt", *["tt"] * 29, "m", "L")
    assert parse_layout("Etttt|(tttt|)*14tmL") == ("Etttt", *["tttt"] * 14, "tmL")
    with pytest.raises(ValueError, match=r"unknown character\(s\) \( \) 1 4 x"):
        parse_layout("E(tt|)x14L")
