"""Comparison of checkpoints: one row per task or suite, one column per evaluated checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1train.eval.score import EvalReport, read_report

MISSING = "-"
NOT_REPORTS = ("perplexity.json", "reward_model.json")


def read_evaluations(root: Path, steps: Sequence[str]) -> dict[str, dict[str, EvalReport]]:
    """Checkpoint -> task -> report, in order of the steps. Reports without a checkpoint's name go by their step.

    A checkpoint that two steps evaluated has the later one's numbers.
    """
    found: dict[str, dict[str, EvalReport]] = {}
    for step in steps:
        for path in sorted((root / step / "eval").glob("**/*.json")):
            if path.name not in NOT_REPORTS:
                report = read_report(path)
                found.setdefault(report.checkpoint or step, {})[report.task] = report
    return found


def comparison_rows(evaluations: dict[str, dict[str, EvalReport]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """(column titles, one row per task): pass@1 with its interval, and cons@k where there are several samples."""
    tasks = list(dict.fromkeys(task for of_checkpoint in evaluations.values() for task in of_checkpoint))
    rows = []
    for task in tasks:
        cells = [report_cell(of[task]) if task in of else MISSING for of in evaluations.values()]
        rows.append((task, *cells))
    return ["task", *evaluations], rows


def report_cell(report: EvalReport) -> str:
    """41.2 (36.0 to 46.7), cons@16 55.0; shares in percent."""
    text = f"{100 * report.pass_at_1:.1f} ({100 * report.ci_low:.1f} to {100 * report.ci_high:.1f})"
    if report.samples_per_problem > 1 and report.cons_at_k is not None:
        text += f", cons@{report.samples_per_problem} {100 * report.cons_at_k:.1f}"
    return text


def print_comparison(evaluations: dict[str, dict[str, EvalReport]], console: Console) -> None:
    """The comparison as a table, and the details of suites that have some; nothing without evaluations."""
    if not evaluations:
        return
    titles, rows = comparison_rows(evaluations)
    table = Table(title="pass@1 in %, with its 95 % interval")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in detail_lines(evaluations):
        console.print(line, highlight=False)


def detail_lines(evaluations: dict[str, dict[str, EvalReport]]) -> list[str]:
    """One line per report that has more to say: IFEval's other rates, passkey's accuracy per length and depth."""
    return [
        f"{checkpoint} {task}: " + ", ".join(f"{name} {100 * value:.1f}" for name, value in report.details.items())
        for checkpoint, reports in evaluations.items()
        for task, report in reports.items()
        if report.details
    ]
