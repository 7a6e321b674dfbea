"""Built models have exactly the parameters that the planner counts."""

from dataclasses import replace

import pytest
from shapes import DEEPSEEK, DENSE
from tiny import MODEL, config

from r1train.config.schema_model import TokenMergingConfig
from r1train.plan.ranks import parameters_of_stages
from r1train.plan.shape import count_parameters

MODELS = {
    "everything": MODEL,
    "plain_query": replace(MODEL, q_lora_rank=None),
    "no_mtp": replace(MODEL, mtp_depth=0),
    "two_shared": replace(MODEL, num_shared_experts=2),
    "all_dense_but_one": replace(MODEL, num_dense_layers=2),
    "no_shared": replace(MODEL, num_shared_experts=0),
    "merged_tokens": replace(MODEL, token_merging=TokenMergingConfig(first_layer=1, last_layer=2, window=3)),
    **DEEPSEEK,
    **DENSE,
}


@pytest.mark.parametrize("name", MODELS)
def test_built_model_has_the_planned_parameters(device, name):
    from r1train.model.build import build_model

    cfg = config("single", model=MODELS[name])
    built = build_model(cfg, device)
    found = sum(parameter.numel() for parameter in built.parameters())
    biases = sum(buffer.numel() for key, buffer in built.named_buffers() if key.endswith("expert_bias"))
    assert found + biases == count_parameters(cfg.model).total
    assert found == parameters_of_stages(cfg)[0].total


def test_initial_weights(device):
    """Matrices from normal(0, init_std), norm weights 1, and other values for another seed."""
    from r1train.model.build import build_model

    first, second = (dict(build_model(config("single", seed=seed), device).named_parameters()) for seed in (7, 8))
    for name, parameter in first.items():
        if parameter.dim() == 1:
            assert parameter.eq(1.0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.1, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.01, name
            assert not parameter.equal(second[name]), name
    experts = [name for name in first if "local_experts" in name and name.endswith("linear_fc1.weight")]
    assert len(experts) == 3 * 8 and len({first[name].sum().item() for name in experts}) == 3 * 8
