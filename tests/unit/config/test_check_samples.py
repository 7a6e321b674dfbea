"""Rules about sets made from samples, reward models and what joins RL late: messages, and neighbours that pass."""

import pytest

from r1train.config.check_samples import RULES

REJECT = ("stage=reject", "stage.init_from=x")
PAIRS = ("stage=pairs", "stage.samples_from=x", "stage.prefer=shorter")
REWARD = (
    "stage=reward_model",
    "stage.init_from=x",
    "stage.dataset=x",
    "stage.steps=4",
    "stage.batch_size=4",
    "stage.seq_length=256",
)
GRPO = ("stage=grpo", "stage.init_from=x")
JUDGE = "{url: 'http://127.0.0.1:8000/v1', model: m"
LATE = "stage.late_prompts={{prompts: x, share: {share}, from_step: {step}}}"
HELPFUL = "{{name: {name}, checkpoint: x, weight: {weight}, scored: summary, from_step: {step}}}"


def helpful(step: int = 1, *, name: str = "a", weight: float = 1.0) -> str:
    return HELPFUL.format(name=name, weight=weight, step=step)


# (rule, stage, overrides, key, part of the message)
CASES = [
    ("keeps_no_more_than_sampled", REJECT, ["stage.keep_per_prompt=5"], "stage.keep_per_prompt", "the 4 samples"),
    ("part_is_one_of_the_parts", REJECT, ["stage.part=2"], "stage.part", "beyond stage.parts = 1"),
    ("part_is_one_of_the_parts", REJECT, ["stage.parts=2"], "step", "inside that of the run that gathers"),
    ("shares_are_shares", REJECT, ["stage.mix=x", "stage.mix_share=1.0"], "stage.mix_share", "not a share"),
    ("shares_are_shares", REJECT, ["stage.filters.repetition=1.5"], "stage.filters.repetition", "not a share"),
    ("shares_are_shares", GRPO, [LATE.format(share=1.5, step=1)], "stage.late_prompts.share", "not a share"),
    ("near_copies_share_something", REJECT, ["stage.near_duplicate=0.0"], "stage.near_duplicate", "outside (0, 1]"),
    ("near_copies_share_something", REJECT, ["stage.near_duplicate=1.1"], "stage.near_duplicate", "outside (0, 1]"),
    ("share_needs_rows_to_mix", REJECT, ["stage.mix_share=0.25"], "stage.mix_share", "nothing to mix in"),
    ("judges_can_be_asked", REJECT, ["stage.judge={url: host, model: m}"], "stage.judge.url", "address"),
    ("judges_can_be_asked", REJECT, [f"stage.judge={JUDGE}, timeout_s: 0.0}}"], "stage.judge.timeout_s", "no time"),
    (
        "judges_can_be_asked",
        REJECT,
        [f"stage.rewrite={JUDGE}, most_failures: 2.0}}"],
        "stage.rewrite.most_failures",
        "share",
    ),
    ("pairs_know_what_is_better", PAIRS, ["stage.prefer=judge"], "stage.judge", "no judge is given"),
    ("pairs_know_what_is_better", PAIRS, [f"stage.judge={JUDGE}}}"], "stage.judge", "a judge is given"),
    ("pairs_know_what_is_better", PAIRS, ["stage.least_difference=2.0"], "stage.least_difference", "-2 and 2"),
    ("pairs_are_packed_on_one_rank", REWARD, ["stage.batch_size=3"], "stage.batch_size", "dp = 2"),
    (
        "pairs_are_packed_on_one_rank",
        REWARD,
        [
            "cluster=one_gpu",
            "parallel=single",
            "parallel.world_size=2",
            "cluster.processes_per_node=2",
            "parallel.cp=2",
        ],
        "parallel.cp",
        "cuts the samples",
    ),
    (
        "preferences_have_names_of_their_own",
        GRPO,
        [f"reward.preferences=[{helpful()}, {helpful()}]"],
        "reward.preferences.1.name",
        "stands twice",
    ),
    (
        "preferences_have_names_of_their_own",
        GRPO,
        [f"reward.preferences=[{helpful(weight=-1.0)}]"],
        "reward.preferences.0.weight",
        "below 0",
    ),
    ("late_parts_come", GRPO, [LATE.format(share=0.5, step=13)], "stage.late_prompts.from_step", "never begin"),
    (
        "late_parts_come",
        GRPO,
        [f"reward.preferences=[{helpful(4)}]"],
        "reward.preferences.0.from_step",
        "in the middle of a rollout",
    ),
]


@pytest.mark.parametrize(
    ("stage", "overrides", "key", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_rule_reports(problems, stage, overrides, key, message):
    found = problems(*stage, *overrides)
    assert message in found[key].what
    assert found[key].fix


@pytest.mark.parametrize(
    "good",
    [
        REJECT,
        PAIRS,
        REWARD,
        (*REWARD, "stage.max_sample_tokens=null"),
        (*REJECT, "stage.near_duplicate=1.0"),
        (*REJECT, "step=reject/part_0002", "stage.part=2", "stage.parts=2"),
        (*REJECT, "stage.mix=x", "stage.mix_share=0.25", f"stage.judge={JUDGE}}}"),
        (*GRPO, LATE.format(share=1.0, step=3), f"reward.preferences=[{helpful(3)}, {helpful(11, name='b')}]"),
    ],
)
def test_good_neighbours(problems, good):
    assert problems(*good) == {}


def test_every_rule_has_a_case():
    assert {rule.__name__ for rule in RULES} == {case[0] for case in CASES}


def test_files_of_the_new_stages(problems, prepared):
    root, missing = f"root={prepared}", "no such run folder"
    found = problems(
        root, *GRPO[:1], f"stage.init_from={prepared}/pretrain", f"reward.preferences=[{helpful()}]", check_files=True
    )
    assert found["reward.preferences.0.checkpoint"].what == missing
    assert problems(root, *PAIRS, check_files=True)["stage.samples_from"].what == "no samples there"
    found = problems(root, *REWARD, check_files=True)
    assert (found["stage.dataset"].what, found["stage.init_from"].what) == ("no such file", missing)
    found = problems(root, *REJECT, "stage.decontaminate=[gone.jsonl]", check_files=True)
    assert found["stage.decontaminate.0"].what == "no such file"
