"""The schedules beside the smoke schedule: what starts from what, and their own models, rewards and learning rates."""

import pytest

from r1train.config.load import config_tree, load_config
from r1train.config.schema import CollectStage, DistillStage, RejectStage
from r1train.config.steps import plan_steps

# (model's learning rate option, start): DeepSeek-R1 supplementary 2.4.3
STUDENTS = {
    "qwen2_5_math_1_5b": 1e-4,
    "qwen2_5_math_7b": 8e-5,
    "qwen2_5_14b": 7e-5,
    "qwen2_5_32b": 6e-5,
    "llama3_1_8b": 5e-5,
    "llama3_3_70b": 2e-5,
}


def steps(root, *overrides: str) -> dict:
    planned = plan_steps([*overrides, f"root={root}"])
    return {one.step.id: load_config(one.overrides, made_later=one.made_later) for one in planned}


def test_every_stage_of_r1_in_small(tmp_path):
    configs = steps(tmp_path, "experiment=tiny_full")
    assert {cfg.stage.name for cfg in configs.values()} == {
        *("prepare", "pretrain", "sft", "collect", "grpo", "reject", "pairs", "reward_model", "distill", "evaluate")
    }
    assert configs["cold_start"].stage.dataset == f"{tmp_path}/collect/sft.jsonl"
    assert configs["pairs"].stage.samples_from == f"{tmp_path}/reject"
    assert configs["helpful"].stage.dataset == f"{tmp_path}/pairs/pairs.jsonl"
    (helpful,) = configs["rl2"].reward.preferences
    assert (helpful.checkpoint, helpful.from_step) == (f"{tmp_path}/helpful", 1)
    student = configs["distill"]
    assert isinstance(student.stage, DistillStage) and student.stage.dataset == f"{tmp_path}/reject/sft.jsonl"
    assert (student.model.name, student.parallel.ep, configs["rl2"].model.name) == ("tiny_dense", 1, "tiny")


def test_the_student_on_the_mini_models_data_and_its_control(tmp_path):
    """All but the data is the same, also for the second SFT and the cold start."""
    configs = steps(tmp_path, "experiment=mini_full")
    pairs = {"distill": "raw_student", "sft": "cold_start"}
    for step, control in pairs.items():
        one, other = (config_tree(configs[name]) for name in (step, control))
        assert one["stage"].pop("dataset") == f"{tmp_path}/reject/sft.jsonl"
        assert other["stage"].pop("dataset") == f"{tmp_path}/data/cold_start.jsonl"
        assert {key for key in one if one[key] != other[key]} == {"step"}
    assert (configs["distill"].model.name, configs["distill"].model.vocab_size) == ("mini_dense", 1024)
    assert configs["distill"].stage.init_from == f"{tmp_path}/student" and configs["student"].stage.init_from is None
    trained = [name for name, cfg in configs.items() if cfg.stage.name in ("pretrain", "sft", "grpo", "distill")]
    assert [name for name in trained if not configs[name].evaluate_after] == []


def test_a_cold_start_from_a_model_in_small(tmp_path):
    configs = steps(tmp_path, "experiment=tiny_collect")
    assert isinstance(configs["collect"].stage, CollectStage) and isinstance(configs["collect"].stage, RejectStage)
    assert configs["collect"].stage.init_from == f"{tmp_path}/first"
    assert configs["cold_start"].stage.dataset == f"{tmp_path}/collect/sft.jsonl"
    assert configs["sft"].stage.init_from == f"{tmp_path}/pretrain"


def test_r1_zero_has_rule_rewards_only(tmp_path):
    step = next(one for one in plan_steps(["schedule=r1_zero"]) if one.step.id == "r1_zero")
    cfg = load_config([*step.overrides, "stage.steps=16", "stage.save_every_steps=16"], check_files=False)
    assert (cfg.reward.name, cfg.reward.language, cfg.stage.init_from) == ("r1_zero", 0.0, "runs/run/pretrain")


def test_the_helpfulness_model_learns_from_what_it_judges():
    """General prompts, as in the second RL, of the checkpoint that it and that RL start from."""
    steps = {one.step.id: one.step for one in plan_steps(["schedule=r1_full", "root=R"])}
    general, pairs, helpful, rl2 = (steps[name] for name in ("general", "pairs", "helpful", "rl2"))
    assert general.set == {"stage.prompts": rl2.set["stage.late_prompts"]["prompts"]}
    assert rl2.set["reward.preferences"][0]["tasks"] == ["general"]
    assert general.init_from == helpful.init_from == rl2.init_from == "sft"
    assert pairs.set == {"stage.samples_from": "R/general"} and helpful.dataset_from == "pairs"


def test_the_papers_second_rl():
    step = next(one for one in plan_steps(["schedule=r1_full", "rollout=r1"]) if one.step.id == "rl2")
    overrides = [*step.overrides, "model.max_position_embeddings=163840", "eval.max_response_tokens=40"]
    cfg = load_config(overrides, check_files=False)
    assert cfg.rollout.temperature == 0.7
    assert cfg.stage.steps == 1696 and cfg.stage.late_prompts.from_step == 1297  # the last 400 steps
    assert [(one.name, one.scored, one.from_step) for one in cfg.reward.preferences] == [
        ("helpful", "summary", 1297),
        ("safety", "response", 1297),
    ]


@pytest.mark.parametrize("student", STUDENTS)
def test_learning_rates_of_the_students(student):
    start = ["stage=distill", "stage.init_from=x", "stage.dataset=x", "stage.steps=10", f"lr=distill_{student}"]
    cfg = load_config(start, check_files=False)
    assert (cfg.stage.batch_size, cfg.stage.seq_length) == (64, 32_768)
    rate = cfg.lr.learning_rate
    assert rate.start == STUDENTS[student] and rate.segments[0].shape == "cosine"
    assert rate.segments[0].to == pytest.approx(rate.start / 10)
