"""The stage table: one row per schedule step, read from the run folders."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1train.config.schema import ScheduleStep
from r1train.log.memory import read_peak
from r1train.log.result import EvalSummary, StageResult, read_result

INTERVAL = "pass@1, 95 % interval"
COLUMNS = (
    "stage",
    "steps",
    "tokens",
    "seconds",
    "loss",
    "held-out perplexity",
    INTERVAL,
    "problems",
    "format rate",
    "mean response tokens",
    "also",
)
MISSING = "-"


def print_table(root: Path, steps: Sequence[ScheduleStep], console: Console | None = None) -> list[tuple[str, ...]]:
    """Prints the table and, where it was measured, the peak memory line; returns the rows.

    A step without result.json is not finished: its cells are '-'.
    """
    # A pipe or a log file has no width of its own; the table needs 140 columns.
    out = console or Console(width=max(140, Console().width))
    rows = stage_rows(root, steps)
    table = Table(*COLUMNS, title=str(root))
    for column in table.columns[1:]:
        column.justify = "right"
    for column in table.columns:
        column.no_wrap = column.header in ("stage", INTERVAL)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    line = memory_line(root)
    if line is not None:
        out.print(line, highlight=False)
    return rows


def stage_rows(root: Path, steps: Sequence[ScheduleStep]) -> list[tuple[str, ...]]:
    """Cells of each step in schedule order, as in COLUMNS."""
    results = [(step, read_result(root / step.id)) for step in steps]
    return [_row(result) if result else (step.title, *[MISSING] * (len(COLUMNS) - 1)) for step, result in results]


def memory_line(root: Path) -> str | None:
    """Peak memory of all processes of the run together, None where it was not measured."""
    peak = read_peak(root)
    if peak is None:
        return None
    return f"peak memory of all processes: {peak.peak_bytes / 1e9:.2f} GB ({peak.processes} processes, {peak.measure})"


def _row(result: StageResult) -> tuple[str, ...]:
    numbers = result.evals.get(result.main_task) if result.main_task else None
    return (
        result.title,
        MISSING if result.steps is None else f"{result.steps:,}",
        MISSING if result.tokens is None else f"{result.tokens:,}",
        f"{result.seconds:.1f}",
        MISSING if result.loss is None else f"{result.loss:.4f}",
        MISSING if result.heldout_loss is None else f"{math.exp(result.heldout_loss):.3f}",
        *(
            (MISSING,) * 4
            if numbers is None
            else (
                f"{100 * numbers.pass_at_1:.1f} % ({100 * numbers.ci_low:.1f} to {100 * numbers.ci_high:.1f})",
                _counted(numbers),
                f"{100 * numbers.format_rate:.1f} %",
                f"{numbers.mean_response_tokens:.1f}",
            )
        ),
        result.note,
    )


def _counted(numbers: EvalSummary) -> str:
    """How many problems the interval is over, and samples where a problem has several: 512, or 512 x 4."""
    per_problem = numbers.samples // numbers.problems
    return f"{numbers.problems:,}" if per_problem == 1 else f"{numbers.problems:,} x {per_problem}"
