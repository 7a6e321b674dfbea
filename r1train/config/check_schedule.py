"""Rules about a schedule: its steps, their order and what they hand over."""

from collections import Counter

from r1train.config.schema import RunConfig, ScheduleConfig
from r1train.errors import Problem

STAGE_NAMES = (
    "prepare",
    "pretrain",
    "sft",
    "distill",
    "grpo",
    "reject",
    "collect",
    "pairs",
    "reward_model",
    "evaluate",
)
# What a stage's data set is called in its run folder.
DATASET_FILES = {"reject": "sft.jsonl", "collect": "sft.jsonl", "pairs": "pairs.jsonl"}


def schedule_rules(cfg: RunConfig) -> list[Problem]:
    """The rules below on the run's schedule."""
    return schedule_problems(cfg.schedule)


def schedule_problems(schedule: ScheduleConfig) -> list[Problem]:
    """All problems of a schedule on its own."""
    if not schedule.steps:
        return [Problem("schedule.steps", [], "the schedule has no steps", "list at least one")]
    return [
        *_ids_are_unique(schedule),
        *_stages_are_known(schedule),
        *_references_are_earlier(schedule),
        *_datasets_are_written(schedule),
    ]


def _ids_are_unique(schedule: ScheduleConfig) -> list[Problem]:
    counts = Counter(step.id for step in schedule.steps)
    return [
        Problem("schedule.steps", name, f"{count} steps have this id, but an id names a run folder", "rename one")
        for name, count in counts.items()
        if count > 1
    ]


def _stages_are_known(schedule: ScheduleConfig) -> list[Problem]:
    return [
        Problem(f"schedule.steps.{index}.stage", step.stage, "no such stage", f"one of {', '.join(STAGE_NAMES)}")
        for index, step in enumerate(schedule.steps)
        if step.stage not in STAGE_NAMES
    ]


def _references_are_earlier(schedule: ScheduleConfig) -> list[Problem]:
    problems = []
    for index, step in enumerate(schedule.steps):
        earlier = [other.id for other in schedule.steps[:index]]
        for name, target in (("init_from", step.init_from), ("dataset_from", step.dataset_from)):
            if target is not None and target not in earlier:
                key = f"schedule.steps.{index}.{name}"
                what = f"step {step.id} cannot start from a step that does not come before it"
                problems.append(Problem(key, target, what, f"one of {', '.join(earlier) or 'none'}"))
    return problems


def _datasets_are_written(schedule: ScheduleConfig) -> list[Problem]:
    stages = {step.id: step.stage for step in schedule.steps}
    return [
        Problem(
            f"schedule.steps.{index}.dataset_from",
            step.dataset_from,
            "only reject, collect and pairs steps write one",
            "its id",
        )
        for index, step in enumerate(schedule.steps)
        if step.dataset_from in stages and stages[step.dataset_from] not in DATASET_FILES
    ]


RULES = (schedule_rules,)
