"""Every rule of config/check_token_merging.py reports a config that breaks it, and lets a good one pass."""

import pytest

from r1train.config import check_token_merging
from r1train.config.load import CONF

ON = "model.token_merging={first_layer: 2, last_layer: 2, window: 4}"  # tiny has three layers
PRETRAIN = ("stage=pretrain", "evaluate_after=false", ON)
FOUR = ("cluster.processes_per_node=4", "parallel.world_size=4", "parallel.ep=1")
KEY = "model.token_merging"

CASES = [
    ("merged_layers_exist", [*PRETRAIN, f"{KEY}.window=1"], f"{KEY}.window", "merges nothing"),
    ("merged_layers_exist", [*PRETRAIN, f"{KEY}.last_layer=4"], f"{KEY}.last_layer", "last of 3 layers"),
    ("merged_layers_exist", [*PRETRAIN, f"{KEY}.first_layer=3"], f"{KEY}.last_layer", "first_layer = 3"),
    ("merged_tokens_are_pretrained_only", [*PRETRAIN, "evaluate_after=true"], "evaluate_after", "generates"),
    (
        "merged_tokens_are_pretrained_only",
        [*PRETRAIN, "data.mask_across_documents=true", "stage.micro_batch_size=1"],
        "data.mask_across_documents",
        "cross documents",
    ),
    *(
        (
            "merged_tokens_are_pretrained_only",
            [f"stage={stage}", "stage.init_from=x", *more, ON],
            KEY,
            f"stage {stage} ",
        )
        for stage, more in {
            "sft": ["stage.dataset=x"],
            "distill": ["stage.dataset=x", "stage.steps=10"],
            "grpo": [],
            "reject": [],
            "evaluate": [],
            "reward_model": ["stage.dataset=x", "stage.steps=10"],
        }.items()
    ),
    *(
        ("merged_sequences_are_whole", [*PRETRAIN, *FOUR, *more], f"parallel.{axis}", "whole sequences")
        for axis, more in {
            "tp": ["parallel.tp=2"],
            "cp": ["parallel.cp=2", "cluster=one_gpu", "cluster.processes_per_node=4"],
            "pp": ["parallel.pp=2", 'parallel.pp_layout="Ett|tmL"'],
        }.items()
    ),
    (
        "merging_stands_alone",
        [*PRETRAIN, "model.attention_windows=[8, null, null]"],
        "model.attention_windows",
        "count merged tokens",
    ),
    (
        "merging_stands_alone",
        [*PRETRAIN, "parallel.overlap_expert_all_to_all=true"],
        "parallel.overlap_expert_all_to_all",
        "takes layers apart",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_rule_reports(problems, overrides, key, message):
    found = problems(*overrides)
    assert message in found[key].what
    assert found[key].fix


def test_every_rule_has_a_case():
    assert {rule.__name__ for rule in check_token_merging.RULES} == {case[0] for case in CASES}


@pytest.mark.parametrize("overrides", [PRETRAIN, ["stage=prepare", ON], [*PRETRAIN, f"{KEY}.last_layer=3"]])
def test_good_configs_pass(problems, overrides):
    assert problems(*overrides) == {}


def test_no_model_has_it():
    assert [path.name for path in (CONF / "model").glob("*.yaml") if "token_merging" in path.read_text()] == []
