"""Rules about the training stages: lengths, batches, optimizer and schedules."""

import math

from r1train.config.layout import micro_batch_rounds
from r1train.config.schema import (
    MAIN_HEAD_STAGES,
    GrpoStage,
    PretrainStage,
    RewardModelStage,
    RunConfig,
    SftStage,
)
from r1train.config.schema_train import Piecewise
from r1train.errors import Problem

TRAINING = (PretrainStage, SftStage, GrpoStage, RewardModelStage)


def sequence_fits_positions(cfg: RunConfig) -> list[Problem]:
    """Packed rows (SFT, GRPO) may be longer: positions start anew with every sample in them."""
    limit = cfg.model.distinct_positions
    if not isinstance(cfg.stage, PretrainStage) or cfg.stage.seq_length <= limit:
        return []
    what = f"longer than the {limit} positions that the model can tell apart"
    fix = f"at most {limit}, or raise model.max_position_embeddings (and model.yarn.factor)"
    return [Problem("stage.seq_length", cfg.stage.seq_length, what, fix)]


def sequence_divides_over_ranks(cfg: RunConfig) -> list[Problem]:
    """Sequence parallelism cuts a sequence into tp parts, context parallelism into 2 cp parts."""
    if not isinstance(cfg.stage, TRAINING):
        return []
    parallel, length = cfg.parallel, cfg.stage.seq_length
    parts = parallel.tp * (2 * parallel.cp if parallel.cp > 1 else 1)
    if length % parts == 0:
        return []
    what = f"not divisible into {parts} parts (tp = {parallel.tp}, cp = {parallel.cp})"
    return [Problem("stage.seq_length", length, what, f"a multiple of {parts}")]


def batch_divides_over_ranks(cfg: RunConfig) -> list[Problem]:
    if not isinstance(cfg.stage, PretrainStage | SftStage):
        return []
    micro = cfg.stage.micro_batch_size if isinstance(cfg.stage, PretrainStage) else 1
    share = cfg.parallel.dp * micro
    if share and cfg.stage.batch_size % share == 0:
        return []
    what = f"not divisible by dp x micro_batch_size = {cfg.parallel.dp} x {micro} = {share}"
    return [Problem("stage.batch_size", cfg.stage.batch_size, what, f"a multiple of {share}")]


def optimizer_in_range(cfg: RunConfig) -> list[Problem]:
    optim = cfg.optim
    problems = [
        Problem(f"optim.{name}", value, "outside [0, 1)", "for AdamW 0.9 and 0.95 are usual")
        for name, value in (("beta1", optim.beta1), ("beta2", optim.beta2))
        if not 0 <= value < 1
    ]
    problems += [
        Problem(f"optim.{name}", value, "below 0", "write 0 or more")
        for name, value in (("weight_decay", optim.weight_decay), ("clip_grad", optim.clip_grad))
        if value < 0
    ]
    if optim.eps <= 0:
        problems.append(
            Problem("optim.eps", optim.eps, "must be above 0", "write a small positive number, such as 1e-8")
        )
    return problems


def schedules_move_forward(cfg: RunConfig) -> list[Problem]:
    problems = []
    for name, schedule in _schedules(cfg):
        ends = [segment.until for segment in schedule.segments]
        if any(later <= earlier for earlier, later in zip([0.0, *ends], ends, strict=False)):
            what = "the ends of the segments must increase, from above 0"
            problems.append(Problem(f"lr.{name}.segments", ends, what, "sort them by `until`"))
    return problems


def fractions_end_at_one(cfg: RunConfig) -> list[Problem]:
    problems = []
    for name, schedule in _schedules(cfg):
        for index, segment in enumerate(schedule.segments):
            if schedule.unit == "fraction" and segment.until > 1:
                key = f"lr.{name}.segments.{index}.until"
                what = "beyond 1, but the unit is a fraction of the stage's steps"
                problems.append(Problem(key, segment.until, what, "at most 1, or unit: steps or tokens"))
    return problems


def scheduled_values_not_negative(cfg: RunConfig) -> list[Problem]:
    problems = []
    for name, schedule in _schedules(cfg):
        values = {"start": schedule.start}
        values |= {f"segments.{index}.to": segment.to for index, segment in enumerate(schedule.segments)}
        for key, value in values.items():
            if value < 0:
                problems.append(Problem(f"lr.{name}.{key}", value, "below 0", "write 0 or more"))
    return problems


def fine_tuning_keeps_the_expert_bias(cfg: RunConfig) -> list[Problem]:
    """The routers' bias is pre-training's; a rate here also tells of pre-training's schedules taken by mistake."""
    highest = _highest(cfg.lr.bias_rate)
    if not isinstance(cfg.stage, SftStage | GrpoStage | RewardModelStage) or highest <= 0:
        return []
    what = f"lr={cfg.lr.name} moves the experts' bias, which stage {cfg.stage.name} keeps as pre-training left it"
    fix = "schedules for this stage (lr=sft, lr=grpo); an experiment sets pre-training's in per_stage.pretrain.lr"
    return [Problem("lr.bias_rate", highest, what, fix)]


def main_head_stages_have_no_mtp_loss(cfg: RunConfig) -> list[Problem]:
    highest = _highest(cfg.lr.mtp_weight)
    if not isinstance(cfg.stage, MAIN_HEAD_STAGES) or highest <= 0:
        return []
    what = f"stage {cfg.stage.name} trains the main head alone and leaves the MTP modules as they are"
    return [Problem("lr.mtp_weight", highest, what, "0 from start to end, as in lr=grpo and lr=reward_model")]


def only_pretraining_has_a_batch_ramp(cfg: RunConfig) -> list[Problem]:
    if isinstance(cfg.stage, PretrainStage) or not isinstance(cfg.stage, TRAINING) or cfg.lr.batch_size is None:
        return []
    what = f"stage {cfg.stage.name} has the same batch in every step and does not read it"
    return [Problem("lr.batch_size", cfg.lr.batch_size.start, what, "null")]


def batch_multiple_fits(cfg: RunConfig) -> list[Problem]:
    """The sizes of a growing batch divide over the ranks' micro-batches, and do not depend on them."""
    stage, multiple = cfg.stage, cfg.lr.batch_multiple
    if not isinstance(stage, PretrainStage) or cfg.lr.batch_size is None:
        return []
    try:
        factors = (cfg.parallel.dp, stage.micro_batch_size, micro_batch_rounds(cfg.parallel))
    except ValueError:  # check_layout.py reports a layout that cannot be read
        return []
    share = math.prod(factors)
    if share and multiple % share:
        product = " x ".join(map(str, factors))
        what = f"not divisible by dp x micro_batch_size x rounds of virtual stages = {product} = {share}"
        both = math.lcm(multiple, share)
        return [Problem("lr.batch_multiple", multiple, what, str(both if stage.batch_size % both == 0 else share))]
    if stage.batch_size % multiple:
        what = f"does not divide stage.batch_size = {stage.batch_size}, where the ramp ends"
        return [Problem("lr.batch_multiple", multiple, what, str(share))]
    return []


def _highest(schedule: Piecewise) -> float:
    return max([schedule.start, *(segment.to for segment in schedule.segments)])


def _schedules(cfg: RunConfig) -> tuple[tuple[str, Piecewise], ...]:
    named = [(name, vars(cfg.lr)[name]) for name in ("learning_rate", "mtp_weight", "bias_rate", "batch_size")]
    return tuple((name, schedule) for name, schedule in named if schedule is not None)


RULES = (
    sequence_fits_positions,
    sequence_divides_over_ranks,
    batch_divides_over_ranks,
    optimizer_in_range,
    schedules_move_forward,
    fractions_end_at_one,
    scheduled_values_not_negative,
    fine_tuning_keeps_the_expert_bias,
    main_head_stages_have_no_mtp_loss,
    only_pretraining_has_a_batch_ramp,
    batch_multiple_fits,
)
