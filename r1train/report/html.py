"""report.html: stage table, lineage, comparison of evaluations and curves of every training stage, in one file."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from r1train.log.atomic import write_atomically
from r1train.log.metrics import FILE_NAME as METRICS
from r1train.log.metrics import read_metrics
from r1train.report.evaluations import comparison_rows, detail_lines, read_evaluations
from r1train.report.lineage import Node, artifact_line, node_line
from r1train.report.table import COLUMNS, memory_line

FILE_NAME = "report.html"
# What is drawn of a training stage where its metrics have it: title -> key of metrics.jsonl.
CURVES = {
    "loss": "loss",
    "accuracy (reward)": "reward/accuracy",
    "mean response tokens": "response_tokens",
    "learning rate": "learning_rate",
    "gradient norm": "grad_norm",
}
STYLE = (
    "body{font:15px/1.45 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left}"
    "code{font-size:90%}.stale{color:#b00}img{max-width:100%}ul{list-style:square}"
)


def write_html(root: Path, nodes: Sequence[Node], stage_rows: Sequence[tuple[str, ...]]) -> Path:
    """Writes <root>/report.html atomically; it refers to no other file."""
    evaluations = read_evaluations(root, [node.step for node in nodes])
    titles, rows = comparison_rows(evaluations)
    parts = [
        f"<h1>{html.escape(root.name)}</h1>",
        "<h2>Stages</h2>",
        table_html(COLUMNS, stage_rows),
        f"<p>{html.escape(memory_line(root) or '')}</p>",
        "<h2>Lineage</h2>",
        lineage_html(nodes),
    ]
    if evaluations:
        parts += ["<h2>Evaluations</h2><p>pass@1 in %, with its 95 % interval</p>", table_html(titles, rows)]
        parts += [f"<p>{html.escape(line)}</p>" for line in detail_lines(evaluations)]
    for node in nodes:
        path = root / node.step / METRICS
        image = curves(read_metrics(path)) if path.is_file() else None
        if image is not None:
            parts.append(f'<h2>{html.escape(node.step)}</h2><img alt="curves" src="data:image/png;base64,{image}">')
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(root.name)}</title><style>{STYLE}</style>"
    write_atomically(root / FILE_NAME, page + "\n".join(parts) + "\n")
    return root / FILE_NAME


def table_html(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table; every cell is escaped."""
    lines = [_row("th", titles), *(_row("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def lineage_html(nodes: Sequence[Node]) -> str:
    """Every step with its inputs and outputs, digests shortened."""
    items = []
    for node in nodes:
        inner = [f"<li class=stale>stale: {html.escape(why)}</li>" for why in node.stale]
        if node.parents:
            inner.append(f"<li>from {html.escape(', '.join(node.parents))}</li>")
        if node.manifest is not None:
            for word, artifacts in (("read", node.manifest.inputs), ("made", node.manifest.outputs)):
                inner += [f"<li>{word} <code>{html.escape(artifact_line(one))}</code></li>" for one in artifacts]
        items.append(f"<li><b>{html.escape(node_line(node))}</b><ul>{''.join(inner)}</ul></li>")
    return f"<ul>{''.join(items)}</ul>"


def curves(metrics: Sequence[dict[str, Any]]) -> str | None:
    """The curves over optimizer steps as a PNG in base64; None where nothing can be drawn."""
    found = {title: points(metrics, key) for title, key in CURVES.items()}
    found = {title: xy for title, xy in found.items() if len(xy[0]) > 1}
    if not found:
        return None
    figure = Figure(figsize=(3.6 * len(found), 2.6), layout="constrained")
    every = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (title, (steps, values)) in zip(every, found.items(), strict=True):
        axes.plot(steps, values, linewidth=1)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def points(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key, where it is a number."""
    rows = [row for row in metrics if isinstance(row.get(key), int | float)]
    return [row["step"] for row in rows], [float(row[key]) for row in rows]


def _row(cell: str, values: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(value)}</{cell}>" for value in values) + "</tr>"
