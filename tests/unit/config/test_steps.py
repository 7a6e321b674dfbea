"""The R1 schedule as command lines, and the rules of schedules."""

import pytest

from r1train.config.load import load_config
from r1train.config.steps import check_schedule, plan_steps
from r1train.errors import ConfigError


def test_r1_follows_the_paper(tmp_path):
    root = str(tmp_path)
    planned = plan_steps(["experiment=tiny", f"root={root}"])
    stages = ["prepare", "pretrain", "sft", "grpo", "reject", "sft", "grpo", "evaluate"]
    ids = ["prepare", "pretrain", "cold_start", "rl1", "reject", "sft", "rl2", "evaluate"]
    assert [step.step.stage for step in planned] == stages
    assert [step.step.id for step in planned] == ids
    configs = {step.step.id: load_config(step.overrides, made_later=step.made_later) for step in planned}
    starts = {name: cfg.stage.init_from for name, cfg in configs.items() if name != "prepare"}
    assert starts == {
        "pretrain": None,
        "cold_start": f"{root}/pretrain",
        "rl1": f"{root}/cold_start",
        "reject": f"{root}/rl1",
        "sft": f"{root}/pretrain",  # from the base again, not from the first RL (R1 section 3)
        "rl2": f"{root}/sft",
        "evaluate": f"{root}/rl2",
    }
    assert configs["cold_start"].stage.dataset == f"{root}/data/cold_start.jsonl"
    assert configs["sft"].stage.dataset == f"{root}/reject/sft.jsonl"
    assert (configs["rl1"].rollout.temperature, configs["rl2"].rollout.temperature) == (1.0, 0.7)
    assert [cfg.run_dir.name for cfg in configs.values()] == list(configs)


def test_users_override_wins_over_the_step():
    planned = plan_steps(["experiment=tiny", "rollout.temperature=0.9"])
    assert load_config(planned[6].overrides, check_files=False).rollout.temperature == 0.9


def test_set_values_of_every_type_survive():
    changes = "{name: 'a b', seed: 7, evaluate_after: true, rollout.top_p: 0.5, parallel.recompute_modules: [mlp, moe]}"
    step = "{id: p, stage: prepare, title: p, set: " + changes + "}"
    cfg = load_config(plan_steps(["experiment=tiny", f"schedule.steps=[{step}]"])[0].overrides, check_files=False)
    assert (cfg.name, cfg.seed, cfg.evaluate_after, cfg.rollout.top_p) == ("a b", 7, True, 0.5)
    assert cfg.parallel.recompute_modules == ("mlp", "moe")


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ("[]", "no steps"),
        ("[{id: a, stage: prepare, title: t}, {id: a, stage: prepare, title: t}]", "2 steps have this id"),
        ("[{id: a, stage: foo, title: t}]", "no such stage"),
        ("[{id: a, stage: sft, title: t, init_from: b}, {id: b, stage: pretrain, title: t}]", "does not come before"),
        (
            "[{id: a, stage: pretrain, title: t}, {id: b, stage: sft, title: t, dataset_from: a}]",
            "only reject, collect and pairs steps write one",
        ),
        ("[{id: a, stage: prepare}]", "required, but nothing states it"),
        ("[{id: a, stage: prepare, title: t, sett: {}}]", "unknown key"),
    ],
)
def test_bad_schedules(steps, what):
    with pytest.raises(ConfigError) as caught:
        plan_steps([f"schedule.steps={steps}"])
    assert what in str(caught.value)


def test_bad_schedule_is_reported_by_a_single_stage_too():
    with pytest.raises(ConfigError, match="no such stage"):
        load_config(["schedule.steps.0.stage=foo"])


def test_problem_of_one_step_names_it_and_problem_of_all_stands_once():
    with pytest.raises(ConfigError) as caught:
        check_schedule(["experiment=tiny", "per_stage.rl2.rl.kl_coef=-1", "optim.eps=0", "seedd=3"])
    keys = sorted(problem.key for problem in caught.value.problems)
    assert keys == ["[rl2] rl.kl_coef", "optim.eps", "seedd"]


def test_what_is_prepared_empty_is_said_before_the_first_stage():
    """Without tasks there are no prompts and no cold start; pre-training and its kind need none."""
    with pytest.raises(ConfigError) as caught:
        check_schedule(["experiment=tiny", "data.tasks=[]"])
    found = {(problem.key, problem.what.split(", so ")[0]) for problem in caught.value.problems}
    steps = {"cold_start": "cold_start", "rl1": "train", "reject": "train", "rl2": "train"}
    heldout = ("cold_start", "rl1", "sft", "rl2")
    expected = {*steps.items(), *((step, "heldout") for step in heldout)}
    assert found == {(f"[{step}] data.tasks", f"no task has {count} problems") for step, count in expected}
    (one,) = [problem for problem in caught.value.problems if problem.key == "[reject] data.tasks"]
    assert "prompts/train.jsonl that this step reads is empty" in one.what
    assert [cfg.step for cfg in check_schedule(["experiment=tiny_extend"])][:2] == ["prepare", "pretrain"]


def test_only_the_files_that_are_read_have_to_be_there():
    """Prompts alone are enough for RL on the base, and a cold start of one's own needs none of ours."""
    task = "{name: chain_sum, train: 9, heldout: 9, cold_start: 0, params: {}, styles: {}}"
    check_schedule(["experiment=tiny", "schedule=r1_zero", f"data.tasks=[{task}]"])
    with pytest.raises(ConfigError) as caught:
        check_schedule(["experiment=tiny", f"data.tasks=[{task}]"])
    assert [problem.key for problem in caught.value.problems] == ["[cold_start] data.tasks"]
