"""Every rule of config/check_train.py reports a config that breaks it, and lets its neighbours pass."""

import pytest

from r1train.config import check_train

PRETRAIN = ("stage=pretrain",)
SFT = ("stage=sft", "stage.init_from=runs/a", "stage.dataset=d.jsonl")
GRPO = ("stage=grpo", "stage.init_from=x")
REWARD = (
    "stage=reward_model",
    "stage.init_from=x",
    "stage.dataset=x",
    "stage.steps=4",
    "stage.batch_size=4",
    "stage.seq_length=256",
)
RAMP = "lr.batch_size={start: 16, segments: [{until: 1e6, shape: linear, to: 16}]}"
SIXTEEN = "lr.batch_multiple=16"
GROWING = "lr.batch_size={start: 48, segments: [{until: 1e6, shape: linear, to: 144}]}"
# Two pipeline stages of two virtual ones: micro-batches come in rounds of two.
ROUNDS = ("parallel.ep=1", "parallel.pp=2", "parallel.pp_layout='Et|t|t|mL'", "evaluate_after=false")

# (rule, stage, overrides, key, part of the message)
CASES = [
    ("sequence_fits_positions", PRETRAIN, ["stage.seq_length=513"], "stage.seq_length", "longer than the 512"),
    ("sequence_divides_over_ranks", PRETRAIN, ["parallel.cp=2", "stage.seq_length=258"], "stage.seq_length", "4 parts"),
    ("batch_divides_over_ranks", PRETRAIN, ["stage.batch_size=33"], "stage.batch_size", "2 x 8 = 16"),
    ("optimizer_in_range", PRETRAIN, ["optim.beta2=1.0"], "optim.beta2", "outside [0, 1)"),
    (
        "schedules_move_forward",
        PRETRAIN,
        ["lr.mtp_weight.segments.0.until=1.0"],
        "lr.mtp_weight.segments",
        "must increase",
    ),
    (
        "fractions_end_at_one",
        PRETRAIN,
        ["lr.learning_rate.segments.1.until=1.5"],
        "lr.learning_rate.segments.1.until",
        "beyond 1",
    ),
    (
        "schedules_move_forward",
        PRETRAIN,
        [
            "stage.batch_size=32",
            SIXTEEN,
            "lr.batch_size={start: 16, segments: "
            "[{until: 9, shape: linear, to: 16}, {until: 8, shape: linear, to: 32}]}",
        ],
        "lr.batch_size.segments",
        "must increase",
    ),
    (
        "fractions_end_at_one",
        PRETRAIN,
        [SIXTEEN, "lr.batch_size={unit: fraction, start: 16, segments: [{until: 1.5, shape: linear, to: 16}]}"],
        "lr.batch_size.segments.0.until",
        "beyond 1",
    ),
    ("batch_multiple_fits", PRETRAIN, [RAMP], "lr.batch_multiple", "= 2 x 8 x 1 = 16"),
    (
        "batch_multiple_fits",
        PRETRAIN,
        ["stage.batch_size=144", GROWING, "lr.batch_multiple=24", *ROUNDS],
        "lr.batch_multiple",
        "= 1 x 8 x 2 = 16",
    ),
    (
        "batch_multiple_fits",
        PRETRAIN,
        ["stage.batch_size=144", GROWING, "lr.batch_multiple=32"],
        "lr.batch_multiple",
        "does not divide stage.batch_size = 144",
    ),
    ("scheduled_values_not_negative", PRETRAIN, ["lr.bias_rate.start=-1"], "lr.bias_rate.start", "below 0"),
    (
        "fine_tuning_keeps_the_expert_bias",
        SFT,
        ["lr.bias_rate.start=1e-3"],
        "lr.bias_rate",
        "which stage sft keeps as pre-training left it",
    ),
    (
        "main_head_stages_have_no_mtp_loss",
        GRPO,
        ["lr.mtp_weight={start: 0.0, segments: [{until: 1.0, shape: constant, to: 0.1}]}"],
        "lr.mtp_weight",
        "stage grpo trains the main head alone",
    ),
    (
        "only_pretraining_has_a_batch_ramp",
        GRPO,
        ["lr.batch_size={start: 8}"],
        "lr.batch_size",
        "stage grpo has the same batch in every step",
    ),
    (
        "main_head_stages_have_no_mtp_loss",
        REWARD,
        ["lr.mtp_weight.start=0.1"],
        "lr.mtp_weight",
        "stage reward_model trains the main head alone",
    ),
]


@pytest.mark.parametrize(
    ("stage", "overrides", "key", "message"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_rule_reports(problems, stage, overrides, key, message):
    found = problems(*stage, *overrides)
    assert message in found[key].what
    assert found[key].fix


@pytest.mark.parametrize(
    "good",
    [
        PRETRAIN,
        SFT,
        GRPO,
        REWARD,
        (*PRETRAIN, RAMP, SIXTEEN),
        (*PRETRAIN, "stage.batch_size=144", GROWING, "lr.batch_multiple=48", *ROUNDS),
        (*SFT, "lr.mtp_weight.start=0.3"),
        ("stage=prepare", RAMP),
    ],
)
def test_neighbours_pass(problems, good):
    assert problems(*good) == {}


@pytest.mark.parametrize(("multiple", "fitting"), [(1, "16"), (24, "48"), (9, "144"), (72, "144"), (10, "16")])
def test_a_fitting_multiple_is_named(problems, multiple, fitting):
    """The least one that keeps what was asked for and divides the batch; else the layout's own share. It is good."""
    given = (*PRETRAIN, "stage.batch_size=144", GROWING.replace("48", "144"), *ROUNDS)
    assert problems(*given, f"lr.batch_multiple={multiple}")["lr.batch_multiple"].fix == fitting
    assert problems(*given, f"lr.batch_multiple={fitting}") == {}


def test_every_rule_has_a_case():
    assert {rule.__name__ for rule in check_train.RULES} == {case[0] for case in CASES}
