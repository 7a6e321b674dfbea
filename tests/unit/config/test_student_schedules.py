"""Schedules that distil into an imported student: one key says its model, learning rate and tokenizer."""

import json
from pathlib import Path

import pytest

from r1train.config.load import load_config
from r1train.config.schema import DistillStage
from r1train.config.steps import check_schedule, plan_steps
from r1train.errors import ConfigError

QWEN_14B = "schedule.student={model: qwen2_5_14b, lr: distill_qwen2_5_14b, tokenizer_vocab_size: 151665}"
# What the schedules leave to an experiment.
VALUES = ["experiment=tiny", "per_stage.distill.stage.steps=4110"]


def student_steps(schedule: str, *overrides: str) -> dict:
    planned = plan_steps([*VALUES, f"schedule={schedule}", "root=R", *overrides])
    wanted = ("student_data", "distill", "evaluate_student")
    return {one.step.id: load_config(one.overrides, check_files=False) for one in planned if one.step.id in wanted}


@pytest.mark.parametrize("schedule", ["r1_full", "r1_distill"])
def test_the_papers_chain_ends_in_a_students_distillation(schedule):
    ids = [step.step.id for step in plan_steps([f"schedule={schedule}"])]
    assert ids[-5:] == ["rl2", "evaluate", "student_data", "distill", "evaluate_student"]
    configs = student_steps(schedule)
    distill = configs["distill"]
    assert isinstance(distill.stage, DistillStage)
    assert (distill.stage.init_from, distill.stage.dataset) == ("R/student", "R/reject/sft.jsonl")
    assert (distill.stage.batch_size, distill.stage.seq_length) == (64, 32_768)
    assert distill.lr.learning_rate.start == 1e-4 and distill.lr.learning_rate.segments[0].to == 1e-5
    assert configs["evaluate_student"].stage.init_from == "R/distill"
    for cfg in configs.values():
        assert (cfg.model.name, cfg.parallel.ep, cfg.data.dir) == ("qwen2_5_math_1_5b", 1, "R/student_data/data")
        assert cfg.data.tokenizer_vocab_size == 151_665
    prepare = configs["student_data"].data
    assert (prepare.tokenizer, prepare.corpora, prepare.worked_examples) == ("R/student/hf", (), 0)


def test_its_problems_are_those_of_the_others():
    """Same tasks and seed, so the held-out problems of the student are the ones that the policy is measured on."""
    student = student_steps("r1_full")["student_data"].data
    policy = load_config([*VALUES, "schedule=r1_full", "stage=prepare"], check_files=False).data
    assert (student.tasks, student.seed) == (policy.tasks, policy.seed)


def test_another_student_by_one_key():
    cfg = student_steps("r1_full", QWEN_14B)["distill"]
    assert (cfg.model.name, cfg.lr.learning_rate.start) == ("qwen2_5_14b", 7e-5)


def test_a_student_that_does_not_exist():
    with pytest.raises(ConfigError, match="no such option of the group lr"):
        student_steps("r1_full", "schedule.student.lr=distill_gpt")


def a_student(root: Path, entries: int) -> None:
    """What tools/import_hf.py leaves, as far as a check looks."""
    (root / "student/hf").mkdir(parents=True)
    vocabulary = {"model": {"vocab": {str(number): number for number in range(entries)}}, "added_tokens": []}
    (root / "student/hf/tokenizer.json").write_text(json.dumps(vocabulary))
    done = root / "student/checkpoints/step_00000000/_DONE"
    done.parent.mkdir(parents=True)
    done.touch()


def test_the_check_wants_the_students_base_before_anything_runs(tmp_path):
    tiny = ["experiment=tiny", "schedule=r1_distill", f"root={tmp_path}", "per_stage.distill.stage.steps=8"]
    with pytest.raises(ConfigError) as error:
        check_schedule(tiny)
    found = {problem.key: problem.what for problem in error.value.problems}
    assert found["[student_data] data.tokenizer"] == "no such file"
    assert found["[distill] stage.init_from"] == "no such run folder"
    a_student(tmp_path, 151_665)
    assert [cfg.step for cfg in check_schedule(tiny)][-1] == "evaluate_student"


def test_qwen2_5_math_1_5b_with_files_of_ones_own(tmp_path):
    """DeepSeek-R1 supplementary 2.4.3, and 2.3.3 for the steps: 2 epochs of 804,745 samples of 5,355.3 tokens."""
    a_student(tmp_path / "root", 151_665)
    names = ("aime24", "amc23", "math500", "gsm8k_test", "humaneval", "mbpp", "ifeval", "sft")
    for name in names:
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    own = [f"root={tmp_path}/root", f"per_stage.distill.stage.dataset={tmp_path}/sft.jsonl", f"eval.folder={tmp_path}"]
    configs = {cfg.step: cfg for cfg in check_schedule(["experiment=distill_qwen2_5_math_1_5b", *own])}
    cfg = configs["distill"]
    assert (cfg.model.rope_base, cfg.model.rms_norm_eps, cfg.model.max_position_embeddings) == (1e4, 1e-6, 131_072)
    assert (cfg.stage.batch_size, cfg.stage.seq_length, cfg.parallel.dp) == (64, 32_768, 8)
    assert cfg.stage.steps == round(2 * 804_745 * 5_355.3 / (64 * 32_768)) == 4_110
    assert cfg.lr.learning_rate.start == 1e-4 and cfg.lr.learning_rate.segments[0].to == 1e-5
    suites = {suite.name: suite.samples_per_problem for suite in configs["evaluate"].eval.suites}
    assert suites["aime24"] == 64 and configs["evaluate"].eval.max_response_tokens == 32_768


@pytest.mark.parametrize("size", ["1_5b", "7b"])
def test_the_math_bases_are_the_same_shape_at_another_base(size):
    start = ["stage=distill", "stage.init_from=x", "stage.dataset=x", "stage.steps=10", "parallel.ep=1"]
    math, general = (
        vars(load_config([*start, f"model={name}_{size}"], check_files=False).model)
        for name in ("qwen2_5_math", "qwen2_5")
    )
    assert {key: math[key] for key in math if math[key] != general[key]} == {
        "name": f"qwen2_5_math_{size}",
        "rope_base": 10_000.0,
        "max_position_embeddings": 4_096,
    }
