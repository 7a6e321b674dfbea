"""result.json of a run folder: what a finished stage reports; its presence means that the stage is finished."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from r1train.log.atomic import write_atomically

FILE_NAME = "result.json"


@dataclass(frozen=True, kw_only=True)
class EvalSummary:
    """Numbers of one task in the stage table; shares in [0, 1], ci_*: 95 % interval of pass_at_1."""

    pass_at_1: float
    ci_low: float
    ci_high: float
    format_rate: float
    mean_response_tokens: float
    problems: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One row of the stage table. id: the schedule step; title: for people; stage: the kind of run.

    steps, tokens: optimizer steps and training tokens of the stage, None for stages that train nothing; seconds:
    wall-clock of all attempts that the stage knows of; loss: of the last step; heldout_loss: mean over held-out
    documents; main_task: the task of evals shown in the table; note: what else the stage made, in a few words.
    """

    id: str
    title: str
    stage: str
    steps: int | None = None
    tokens: int | None = None
    seconds: float
    loss: float | None = None
    heldout_loss: float | None = None
    evals: dict[str, EvalSummary] = field(default_factory=dict)
    main_task: str | None = None
    note: str = ""


def write_result(run_dir: Path, result: StageResult) -> Path:
    """Writes <run_dir>/result.json atomically; the last thing that a stage does."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / FILE_NAME
    write_atomically(path, json.dumps(asdict(result), indent=1) + "\n")
    return path


def read_result(run_dir: Path) -> StageResult | None:
    """The stage's result, None while it is not finished."""
    path = run_dir / FILE_NAME
    if not path.exists():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    evals = {task: EvalSummary(**numbers) for task, numbers in row["evals"].items()}
    return StageResult(**{**row, "evals": evals})
