"""Architectures: problems of one only, and every model of conf/model."""

import pytest

from r1train.config.load import CONF

PRETRAIN = ("stage=pretrain",)
DENSE = (*PRETRAIN, "model=smollm2_135m", "parallel.ep=1")


def test_a_wrong_value_of_one_architecture_brings_no_problems_of_the_other(problems):
    found = problems(*DENSE, "model.num_layers=x", "model.tie_embedings=true", "model.rope_scaling={factor: 8.0}")
    assert found["model.num_layers"].what == "wrong type: a string where an integer belongs"
    assert found["model.tie_embedings"].fix == "write model.tie_embeddings"
    missing = {
        f"model.rope_scaling.{name}" for name in ("low_freq_factor", "high_freq_factor", "original_max_positions")
    }
    assert found.keys() == {"model.num_layers", "model.tie_embedings"} | missing


def test_an_unknown_architecture(problems):
    found = problems(*PRETRAIN, "model.architecture=mamba")
    assert found.keys() == {"model.architecture"}
    assert found["model.architecture"].fix == "write one of 'deepseek', 'dense'"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
def test_every_model_option_is_a_good_config(problems, name):
    assert problems(*PRETRAIN, f"model={name}", "parallel.ep=1") == {}
