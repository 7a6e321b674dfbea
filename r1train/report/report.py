"""mode=report: stage table, lineage and comparison on the terminal, all of it with curves in <root>/report.html."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from r1train.config.schema import RunConfig
from r1train.report.evaluations import print_comparison, read_evaluations
from r1train.report.html import write_html
from r1train.report.lineage import lineage, print_lineage
from r1train.report.table import print_table


def print_report(configs: Sequence[RunConfig], console: Console | None = None) -> Path | None:
    """Prints the report of a schedule's run folders; the path of the HTML file, None where root does not exist yet."""
    root = Path(configs[0].root)
    out = console or Console(width=max(140, Console().width))
    rows = print_table(root, configs[0].schedule.steps, out)
    nodes = lineage(configs)
    print_lineage(nodes, out)
    print_comparison(read_evaluations(root, [node.step for node in nodes]), out)
    if not root.is_dir():
        return None
    path = write_html(root, nodes, rows)
    out.print(f"written: {path}", highlight=False)
    return path
