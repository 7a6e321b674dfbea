"""Rules about a schedule: its steps, their order and what they hand over."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from r1train.config.schema import (
    EvaluateStage,
    GrpoStage,
    PrepareStage,
    RejectStage,
    RunConfig,
    ScheduleConfig,
    SftStage,
)
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


def prepared_files_have_rows(configs: Sequence[RunConfig]) -> list[Problem]:
    """What steps read of the data that a step before them prepares is not empty; configs: of the steps, in order.

    On its own a step reports an empty file only when that is there: after the steps before it.
    """
    problems, prepared = [], dict[Path, RunConfig]()
    for cfg in configs:
        if isinstance(cfg.stage, PrepareStage):
            prepared[Path(cfg.data.dir)] = cfg
            continue
        source = prepared.get(Path(cfg.data.dir))
        if source is None:
            continue
        names = [task.name for task in source.data.tasks]
        for count, path in _read_of_the_data(cfg):
            if sum(vars(task)[count] for task in source.data.tasks) == 0:
                what = (
                    f"no task has {count} problems, so {path.relative_to(cfg.data.dir)} that this step reads is empty"
                )
                problems.append(Problem(f"[{cfg.step}] data.tasks", names, what, "a task with some, or another file"))
    return problems


def _read_of_the_data(cfg: RunConfig) -> Iterator[tuple[str, Path]]:
    """(which number of a task, file) of prepared files that a stage cannot do without."""
    stage, folder = cfg.stage, Path(cfg.data.dir)
    own = {folder / "cold_start.jsonl": "cold_start", folder / "prompts" / "train.jsonl": "train"}
    named = [stage.dataset] if isinstance(stage, SftStage) else []
    named += [stage.prompts] if isinstance(stage, GrpoStage | RejectStage) else []
    for path in map(Path, named):
        if path in own:
            yield own[path], path
    if cfg.evaluate_after or (isinstance(stage, EvaluateStage) and cfg.data.tasks):
        yield "heldout", folder / "prompts" / "heldout.jsonl"


RULES = (schedule_rules,)
