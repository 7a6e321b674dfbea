"""Composition, precedence of overrides, strict types, and what a run folder records."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from r1train.config.load import compose_tree, config_tree, dump_resolved, group_options, load_config
from r1train.config.schema import SftStage
from r1train.config.steps import plan_steps
from r1train.config.validate import build, build_recorded
from r1train.errors import ConfigError


def test_tiny_pretrain_is_frozen_and_resolved():
    cfg = load_config(["experiment=tiny", "stage=pretrain"], check_files=False)
    assert (cfg.root, cfg.step, cfg.data.dir, cfg.seed) == ("runs/tiny", "pretrain", "runs/tiny/data", 1234)
    assert cfg.run_dir == Path("runs/tiny/pretrain")
    assert (cfg.parallel.dp, cfg.parallel.edp) == (2, 1)
    assert isinstance(cfg.lr.learning_rate.segments, tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.seed = 1


def test_root_and_name_move_everything_below_them():
    cfg = load_config(["name=other", "stage=sft", "experiment=tiny", "stage.init_from=x"], check_files=False)
    assert cfg.root == "runs/other"
    assert cfg.stage.dataset == "runs/other/data/cold_start.jsonl"
    assert load_config(["root=/r", "data.dir=/d"], check_files=False).data.dir == "/d"


def test_per_stage_then_step_id_then_command_line():
    start = ["experiment=tiny", "stage=sft", "stage.init_from=x", "per_stage.sft.stage.steps=40"]
    assert load_config(start, check_files=False).stage.steps == 40
    by_id = [*start, "step=cold_start", "per_stage.cold_start.stage.steps=7"]
    assert load_config(by_id, check_files=False).stage.steps == 7
    assert load_config([*start, "per_stage.cold_start.stage.steps=7"], check_files=False).stage.steps == 40
    assert load_config([*by_id, "stage.steps=9"], check_files=False).stage.steps == 9


def test_sft_and_grpo_bring_their_own_schedules():
    sft = load_config(["stage=sft", "stage.steps=1", "stage.init_from=x", "stage.seq_length=512"], check_files=False)
    assert isinstance(sft.stage, SftStage)
    rate = sft.lr.learning_rate
    assert (rate.start, rate.segments[0].shape, rate.segments[0].to) == (5e-5, "cosine", 5e-6)
    assert (sft.lr.mtp_weight.start, sft.lr.bias_rate.start) == (0.1, 0.0)
    assert (sft.lr.mtp_weight.segments, sft.lr.bias_rate.segments) == ((), ())
    tiny = load_config(["experiment=tiny", "stage=grpo", "stage.init_from=x"], check_files=False)
    assert (tiny.lr.name, tiny.lr.bias_rate.start, tiny.lr.mtp_weight.start) == ("grpo", 0.0, 0.0)


def test_v3_schedule_has_the_papers_boundaries():
    cfg = load_config(["experiment=v3_pretrain_h800_2048"], check_files=False)
    rate = cfg.lr.learning_rate
    assert rate.unit == "tokens"
    assert [(segment.until, segment.to) for segment in rate.segments] == [
        (27_730_640_896, 2.2e-4),  # 2,000 steps of the growing batch
        (10e12, 2.2e-4),
        (14.3e12, 2.2e-5),
        (14.633e12, 2.2e-5),
        (14.8e12, 7.3e-6),
    ]
    assert (cfg.stage.steps, cfg.stage.batch_size) == (15_019 + 227_785, 15360)
    assert (cfg.lr.batch_size.start, cfg.lr.batch_size.segments[0].until, cfg.lr.batch_multiple) == (3072, 469e9, 512)
    assert (cfg.parallel.dp, cfg.parallel.edp) == (128, 2)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ('seed="3"', "wrong type: a string where an integer belongs"),
        ("seed=3.5", "wrong type: a number where an integer belongs"),
        ("seed=true", "wrong type: true/false where an integer belongs"),
        ("seed=null", "wrong type: null where an integer belongs"),
        ('model.init_std="0.1"', "wrong type: a string where a number belongs"),
        ("model.router_bias=1", "wrong type: an integer where true or false belongs"),
        ("name=3", "wrong type: an integer where a string belongs"),
        ("data.corpora=3", "wrong type: an integer where a list belongs"),
        ("rollout.engine=vlm", "not one of the allowed values"),
        ("modle=3", "unknown key"),
        ("optim.distributed=true", "unknown key"),
    ],
)
def test_types_are_strict(problems, override, what):
    assert problems("stage=prepare", override)[override.partition("=")[0]].what == what


def test_an_integer_is_fine_for_a_number_and_a_list_for_a_tuple():
    cfg = load_config(["model.init_std=1", "parallel.recompute_modules=[mlp]"], check_files=False)
    assert isinstance(cfg.model.init_std, float)
    assert cfg.parallel.recompute_modules == ("mlp",)


def test_union_members_are_named_in_one_problem(problems):
    found = problems("stage=prepare", "data.tasks.0.params.x={a:1}")
    assert list(found) == ["data.tasks.0.params.x"]
    expected = "wrong type: a mapping where an integer or a number or a string or true or false or a list belongs"
    assert found["data.tasks.0.params.x"].what == expected


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("model.vocab_sise=3", "write model.vocab_size"),
        ("data.tasks.0.trian=3", "write data.tasks.0.train"),
        ("rl.clip_lo=3", "write rl.clip_low"),
        ("lr.learning_rate.segment=3", "write lr.learning_rate.segments"),
        ("rewards=3", "write reward"),
    ],
)
def test_unknown_key_names_the_closest_known_one(problems, override, fix):
    found = problems("stage=grpo", "stage.init_from=x", override)
    assert found[override.partition("=")[0]].fix == fix


def test_unknown_key_far_from_everything_lists_the_known_ones(problems):
    fix = problems("stage=evaluate", "stage.init_from=x", "stage.zzz=3")["stage.zzz"].fix
    assert fix == "remove it; stage knows name, init_from, use_ema, checkpoints"


def test_missing_key_is_reported_with_its_name(problems):
    found = problems("stage=grpo")
    assert found["stage.init_from"].what == "required, but nothing states it"


def test_unknown_keys_and_broken_rules_are_reported_together(problems):
    found = problems("stage=pretrain", "modle.x=1", "model.num_experts=9", "seedd=1")
    assert {"modle", "seedd", "parallel.ep", "model.num_expert_groups"} <= set(found)


def test_unknown_options_of_several_groups_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        load_config(["stage=grop", "experiment=tny"])
    fixes = [problem.fix for problem in caught.value.problems]
    known = "collect, distill, evaluate, grpo, pairs, prepare, pretrain, reject, reward_model, sft"
    assert fixes[0] == f"did you mean stage=grpo? Known: {known}"
    assert fixes[1].startswith("did you mean experiment=tiny?")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("foo", "not an override"),
        ("seed=1,2", "several values"),
        ("~seed", "cannot be removed"),
        ("per_stage.foo.seed=1", "neither a stage nor a step"),
        ("per_stage.r1_zero.seed=1", "neither a stage nor a step"),
        ("root=${nope}", "Interpolation key 'nope' not found"),
        ("data.tasks.5.train=1", "cannot be set"),
        ("stage.name=foo", "not a known kind"),
    ],
)
def test_override_that_makes_no_sense(problems, override, what):
    (problem,) = problems(override).values()
    assert what in problem.what


def test_every_option_of_every_group_composes():
    for group, options in group_options().items():
        for option in options:
            assert compose_tree([f"{group}={option}"])["seed"] == 1234, f"{group}={option}"


@pytest.mark.parametrize("experiment", group_options()["experiment"])
def test_every_experiment_is_valid(experiment):
    cfg = load_config([f"experiment={experiment}"], check_files=False)
    assert cfg.name == experiment


def test_dump_resolved_writes_values_and_versions(tmp_path):
    cfg = load_config(["experiment=tiny", "stage=pretrain", f"root={tmp_path}"], check_files=False)
    dump_resolved(cfg, cfg.run_dir)
    assert sorted(file.name for file in cfg.run_dir.iterdir()) == ["resolved.yaml", "versions.json"]
    resolved = yaml.safe_load((cfg.run_dir / "resolved.yaml").read_text())
    assert resolved["stage"]["steps"] == cfg.stage.steps
    assert resolved["lr"]["learning_rate"]["segments"][0] == {"until": 0.05, "shape": "linear", "to": 5e-3}
    versions = json.loads((cfg.run_dir / "versions.json").read_text())
    assert versions["packages"]["megatron-core"].startswith("0.19")
    assert versions["git_commit"] is None or len(versions["git_commit"]) == 40


def test_an_index_into_a_list_of_per_stage_is_explained():
    override = "per_stage.pretrain.lr.learning_rate.segments.0.to=8e-3"
    with pytest.raises(ConfigError, match="give a list as a whole"):
        load_config(["experiment=tiny", "stage=pretrain", override], check_files=False)


def test_an_experiment_serves_schedules_that_lack_some_of_its_steps():
    """The tiny experiment has values for cold_start and rl2, which R1-Zero's schedule does not have."""
    overrides = ["experiment=tiny", "schedule=r1_zero"]
    assert [planned.step.id for planned in plan_steps(overrides)] == ["prepare", "pretrain", "r1_zero", "evaluate"]
    overrides += ["stage=grpo", "stage.init_from=runs/base"]
    assert load_config(overrides, check_files=False).stage.steps == 12


def test_a_recorded_config_may_hold_keys_that_are_gone():
    """An older version's resolved.yaml; what never was a key is reported there, too."""
    cfg = load_config(["experiment=tiny"], check_files=False)
    tree = config_tree(cfg)
    tree["optim"]["distributed"] = False
    assert build_recorded(tree) == (cfg, [])
    assert [problem.key for problem in build(tree)[1]] == ["optim.distributed"]
    tree["optim"]["distribute"] = tree["distributed"] = True
    assert sorted(problem.key for problem in build_recorded(tree)[1]) == ["distributed", "optim.distribute"]
