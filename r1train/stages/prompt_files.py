"""Before a stage that grades starts: can every problem that it may ask be graded?"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1train.config.schema import EvaluateStage, GrpoStage, PrepareStage, RunConfig
from r1train.config.schema_samples import PairsStage, RejectStage
from r1train.data.files import read_rows
from r1train.reward.language import LANGUAGES
from r1train.reward.references import check_compiler, check_references, check_task_names


@dataclass(frozen=True)
class _Row:
    id: str
    task: str
    answer: str
    metadata: dict[str, Any]


def check_prompt_files(cfg: RunConfig) -> None:
    """One pass over the prompt files of this stage, without torch, a process group or a model.

    Raises DataError with file, id, what is wrong and the fix, EnvironmentProblem for C++ without a compiler.
    Benchmark suites check their rows as they load them.
    """
    generated = {task.name for task in cfg.data.tasks if not (task.train_file or task.heldout_file)}
    # Rejection sampling looks at the language whatever it weighs (stages/sampling.py).
    languages = LANGUAGES if cfg.reward.language != 0 or isinstance(cfg.stage, RejectStage) else None
    for path in dict.fromkeys(_prompt_files(cfg)):
        fields: dict[str, type] = {"id": str, "task": str, "answer": str, "metadata": dict}
        rows = [_Row(**{name: row[name] for name in fields}) for row in read_rows(path, fields)]
        # What `prepare` generated is known to reasoning_gym, which need not be imported for it.
        check_task_names({row.task for row in rows} - generated, place=str(path))
        check_references(rows, place=str(path), languages=languages)
        check_compiler(rows, place=str(path))


def _prompt_files(cfg: RunConfig) -> Iterator[Path]:
    if isinstance(cfg.stage, GrpoStage | RejectStage):
        yield Path(cfg.stage.prompts)
    if isinstance(cfg.stage, GrpoStage) and cfg.stage.late_prompts is not None:
        yield Path(cfg.stage.late_prompts.prompts)
    evaluates = isinstance(cfg.stage, EvaluateStage) or cfg.evaluate_after
    # Without tasks there are no held-out problems.
    if evaluates and not isinstance(cfg.stage, PrepareStage | PairsStage) and cfg.data.tasks:
        yield Path(cfg.data.dir) / "prompts" / "heldout.jsonl"
