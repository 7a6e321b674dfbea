"""A schedule as command lines: which overrides turn the experiment's config into each step's config."""

from dataclasses import dataclass, replace
from pathlib import Path

from r1train.config.check_schedule import DATASET_FILES, prepared_files_have_rows, schedule_problems
from r1train.config.load import compose_tree, load_config
from r1train.config.prepared import prepared_names
from r1train.config.schema import RunConfig, ScheduleConfig, ScheduleStep
from r1train.config.validate import build
from r1train.errors import ConfigError, Problem


@dataclass(frozen=True)
class PlannedStep:
    """One step of a schedule. overrides: complete arguments for load_config or the command line.

    made_later: run folders and files that earlier steps write, so that they may be missing before the schedule runs.
    """

    step: ScheduleStep
    overrides: list[str]
    made_later: tuple[Path, ...]


def plan_steps(overrides: list[str]) -> list[PlannedStep]:
    """Every step of the chosen schedule, in order. Overrides of the user win over those of the step.

    Raises ConfigError if the schedule itself is wrong; the steps' own configs are not loaded here.
    """
    _refuse_one_id_for_all(overrides)
    tree = compose_tree(overrides)
    schedule, problems = build(tree["schedule"], ScheduleConfig)
    problems = [Problem(f"schedule.{item.key}", item.value, item.what, item.fix) for item in problems]
    if schedule is not None:
        problems += schedule_problems(schedule)
    if problems:
        raise ConfigError(problems)
    root = Path(str(tree["root"]))
    planned: list[PlannedStep] = []
    made: list[Path] = []
    for step in schedule.steps:
        changes = step_overrides(step, root, {other.id: other.stage for other in schedule.steps})
        planned.append(PlannedStep(step, [*changes, *overrides], tuple(made)))
        made += [root / step.id, *(_prepared_files(planned[-1].overrides) if step.stage == "prepare" else [])]
    return planned


def _refuse_one_id_for_all(overrides: list[str]) -> None:
    """With step= from the user every step would have the same run folder, done as soon as the first one is."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") == "step":
            fix = f"leave it out; one stage alone: stage=... step={value}"
            raise ConfigError([Problem("step", value, "a schedule names its steps itself", fix)])


def _prepared_files(overrides: list[str]) -> list[Path]:
    """What a prepare step will write, of its config before any validation: malformed corpora are reported later.

    Not its whole folder: a user's own files there, such as general prompts, are written by nobody.
    """
    data = compose_tree(overrides)["data"]
    corpora = data["corpora"] if isinstance(data["corpora"], list) else []
    names = [str(corpus["name"]) for corpus in corpora if isinstance(corpus, dict) and "name" in corpus]
    return [Path(str(data["dir"])) / name for name in prepared_names(names)]


def check_schedule(overrides: list[str]) -> list[RunConfig]:
    """The checked config of every step. A problem of every step is reported once, others with their step's id.

    Files that earlier steps write may be missing. Raises ConfigError with the problems of all steps together.
    """
    steps = plan_steps(overrides)
    configs: list[RunConfig] = []
    seen_in: dict[str, tuple[Problem, list[str]]] = {}
    for planned in steps:
        try:
            configs.append(load_config(planned.overrides, made_later=planned.made_later))
        except ConfigError as error:
            for problem in error.problems:
                seen_in.setdefault(str(problem), (problem, []))[1].append(planned.step.id)
    problems = [
        problem if len(ids) == len(steps) else replace(problem, key=f"[{', '.join(ids)}] {problem.key}")
        for problem, ids in seen_in.values()
    ]
    problems += prepared_files_have_rows(configs)
    if problems:
        raise ConfigError(problems)
    return configs


def step_overrides(step: ScheduleStep, root: Path, stages: dict[str, str]) -> list[str]:
    """What a step changes: its stage and id, the run folders it starts from, and its own `set`.

    stages: kind of stage of every step id of the schedule.
    """
    changes: dict[str, object] = dict(step.set)
    if step.init_from is not None:
        changes["stage.init_from"] = str(root / step.init_from)
    if step.dataset_from is not None:
        changes["stage.dataset"] = str(root / step.dataset_from / DATASET_FILES[stages[step.dataset_from]])
    return [f"stage={step.stage}", f"step={step.id}", *(f"{key}={_literal(value)}" for key, value in changes.items())]


def _literal(value: object) -> str:
    """The value in the syntax of Hydra overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)
