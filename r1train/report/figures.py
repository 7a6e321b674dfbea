"""Figures for documents, as SVG that is the same for the same numbers: curves of runs, and pass@1 of every stage."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from r1train.errors import DataError
from r1train.log.metrics import FILE_NAME as METRICS
from r1train.log.metrics import read_metrics
from r1train.log.result import FILE_NAME as RESULT
from r1train.log.result import EvalSummary, read_result
from r1train.report.html import CURVES, points

# Words of metrics.jsonl that a figure spells out; other keys stand as they are.
TITLES = {key: title for title, key in CURVES.items()} | {"reflection_words": "reflection words per response"}
# Without them every SVG has other ids and a date, and so differs from the one before it. Text stays text.
REPEATABLE = {"svg.hashsalt": "r1train", "svg.fonttype": "none"}
MISSING = "-"


@dataclass(frozen=True)
class Curve:
    """One key of one run's metrics.jsonl: step numbers and values."""

    steps: list[int]
    values: list[float]


def read_curves(run_dir: Path, keys: Sequence[str]) -> dict[str, Curve]:
    """Key -> curve of a run folder. Raises DataError where the file, or a key in it, is missing."""
    path = run_dir / METRICS
    if not path.is_file():
        raise DataError(f"{path} is not there. Fix: name a run folder of a training stage")
    rows = read_metrics(path)
    found = {key: Curve(*points(rows, key)) for key in keys}
    for key, curve in found.items():
        if not curve.steps:
            numbers = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
            known = ", ".join(sorted(numbers - {"step", "tokens"}))
            raise DataError(f"{path} has no numbers of {key!r}. Fix: one of {known}")
    return found


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over runs at every step that all of them have."""
    by_step = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    steps = [step for step in curves[0].steps if all(step in values for values in by_step)]
    return Curve(steps, [sum(values[step] for values in by_step) / len(by_step) for step in steps])


def curves_svg(runs: Mapping[str, Sequence[dict[str, Curve]]], keys: Sequence[str]) -> bytes:
    """One panel per key. runs: label -> its runs (seeds): each a thin line, their mean a thick one, in one colour."""
    with mpl.rc_context(REPEATABLE):
        figure = Figure(figsize=(3.6 * len(keys), 2.8), layout="constrained")
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
            for index, (label, seeds) in enumerate(runs.items()):
                curves = [seed[key] for seed in seeds]
                for curve in curves if len(curves) > 1 else ():
                    axes.plot(curve.steps, curve.values, color=f"C{index}", linewidth=0.7, alpha=0.5)
                mean = mean_curve(curves)
                axes.plot(mean.steps, mean.values, color=f"C{index}", linewidth=1.8, label=label)
            axes.set_title(TITLES.get(key, key), fontsize=9)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
        if len(runs) > 1:
            figure.axes[0].legend(fontsize=7)
        return _svg(figure)


def read_stages(root: Path) -> dict[str, EvalSummary]:
    """Title -> held-out numbers of every finished stage that was evaluated, in the schedule's order.

    The schedule is that of the manifest of any of the root's runs. Raises DataError where there is none.
    """
    manifests = sorted(root.glob("*/manifest.json"))
    if not manifests:
        raise DataError(f"{root} has no run folders with a manifest. Fix: name the root of a schedule's runs")
    schedule = json.loads(manifests[0].read_text(encoding="utf-8"))["config"]["schedule"]["steps"]
    results = {step["title"]: read_result(root / step["id"]) for step in schedule}
    found = {
        title: result.evals[result.main_task]
        for title, result in results.items()
        if result is not None and result.main_task in result.evals
    }
    if not found:
        raise DataError(f"{root}: no {RESULT} has an evaluation. Fix: evaluate_after=true, or a step of stage evaluate")
    return found


def stages_svg(roots: Mapping[str, Mapping[str, EvalSummary]]) -> bytes:
    """pass@1 of every stage with its 95 % interval, one colour per root (seed)."""
    titles = _titles(roots)
    with mpl.rc_context(REPEATABLE):
        figure = Figure(figsize=(1.2 + 0.85 * len(titles), 3.4), layout="constrained")
        axes = figure.subplots()
        for index, (label, stages) in enumerate(roots.items()):
            shown = [(place, stages[title]) for place, title in enumerate(titles) if title in stages]
            middle = [100 * one.pass_at_1 for _, one in shown]
            low = [max(0.0, 100 * (one.pass_at_1 - one.ci_low)) for _, one in shown]
            high = [max(0.0, 100 * (one.ci_high - one.pass_at_1)) for _, one in shown]
            x = [place + 0.16 * (index - (len(roots) - 1) / 2) for place, _ in shown]
            axes.errorbar(x, middle, yerr=[low, high], fmt="o", markersize=4, capsize=2, linewidth=1, label=label)
        axes.set_xticks(range(len(titles)), titles, rotation=30, ha="right", fontsize=8)
        axes.set_ylabel("held-out pass@1 in %, 95 % interval", fontsize=8)
        axes.set_ylim(0, 100)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=7)
        return _svg(figure)


def stages_markdown(roots: Mapping[str, Mapping[str, EvalSummary]]) -> str:
    """The same numbers as a table, one column per root, with the problems and samples that they count."""
    lines = ["| stage | " + " | ".join(roots) + " | problems |", "|---" * (len(roots) + 2) + "|"]
    for title in _titles(roots):
        of = [stages.get(title) for stages in roots.values()]
        cells = [MISSING if one is None else _cell(one) for one in of]
        counts = {
            f"{one.problems}" if one.samples == one.problems else f"{one.problems}, {one.samples} samples"
            for one in of
            if one is not None
        }
        lines.append(f"| {title} | {' | '.join(cells)} | {' / '.join(sorted(counts))} |")
    return "\n".join(lines)


def _cell(one: EvalSummary) -> str:
    return f"{100 * one.pass_at_1:.1f} % [{100 * one.ci_low:.1f}, {100 * one.ci_high:.1f}]"


def _titles(roots: Mapping[str, Mapping[str, EvalSummary]]) -> list[str]:
    return list(dict.fromkeys(title for stages in roots.values() for title in stages))


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    # matplotlib ends some lines with a blank, which git calls an error.
    return b"\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + b"\n"
