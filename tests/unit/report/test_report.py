"""mode=report on run folders made by hand: comparison cells, the lineage tree, the HTML file."""

import io
import json
import re

import pytest
from rich.console import Console

from r1train.config.load import load_config
from r1train.config.steps import plan_steps
from r1train.eval.score import Outcome, make_report, write_report
from r1train.log.result import StageResult, write_result
from r1train.report.evaluations import comparison_rows, detail_lines, read_evaluations
from r1train.report.html import points, table_html
from r1train.report.lineage import lineage
from r1train.report.report import print_report

STEPS = (
    "[{id: prepare, stage: prepare, title: prepare}, {id: base, stage: pretrain, title: base}, "
    "{id: cold, stage: sft, title: cold, init_from: base}, {id: eval, stage: evaluate, title: e, init_from: cold}]"
)


def outcome(correct, answer):
    return Outcome(correct=correct, formatted=True, answer=answer, response_tokens=4, truncated=False, error=None)


@pytest.fixture
def configs(tmp_path):
    overrides = ["experiment=tiny", f"root={tmp_path}", f"schedule.steps={STEPS}"]
    return [load_config(step.overrides, check_files=False) for step in plan_steps(overrides)]


@pytest.fixture
def evaluated(tmp_path):
    """cold/step_3 on two tasks, base/step_9 on one of them."""
    two = {"a": [outcome(True, "1"), outcome(False, "2")], "b": [outcome(True, "5"), outcome(True, "5")]}
    one = {"a": [outcome(False, "2")]}
    write_report(tmp_path / "base" / "eval", make_report("sums", one, checkpoint="base/step_9"))
    folder = tmp_path / "eval" / "eval"
    write_report(folder, make_report("sums", two, checkpoint="cold/step_3"))
    rates = {"prompt_loose": 0.5}
    write_report(folder, make_report("ifeval", one, votes=False, details=rates, checkpoint="cold/step_3"))
    for other in ("perplexity.json", "reward_model.json"):  # no accuracy of answers
        (folder / other).write_text("{}")
    return read_evaluations(tmp_path, ["base", "eval"])


def test_comparison_by_hand(evaluated):
    titles, rows = comparison_rows(evaluated)
    assert titles == ["task", "base/step_9", "cold/step_3"]
    # 3 of 4 right, the two problems at 1/2 and 1: variance 1/16, so 0.75 * 0.25 * 2 / (1/16) = 6 draws, at most 4.
    assert rows[0][0] == "sums" and rows[0][1] == "0.0 (0.0 to 79.3)"
    assert re.fullmatch(r"75\.0 \(30\.1 to 95\.4\), cons@2 75\.0", rows[0][2])
    assert rows[1] == ("ifeval", "-", "0.0 (0.0 to 79.3)")
    assert detail_lines(evaluated) == ["cold/step_3 ifeval: prompt_loose 50.0"]


def test_lineage_of_folders_without_manifests(configs, tmp_path):
    write_result(tmp_path / "prepare", StageResult(id="prepare", title="prepare", stage="prepare", seconds=1.0))
    states = {node.step: node.state for node in lineage(configs)}
    assert states == {"prepare": "done (no manifest)", "base": "not run", "cold": "not run", "eval": "not run"}


def test_report_prints_and_writes_one_html_file(configs, evaluated, tmp_path):
    rows = [{"step": step, "loss": 3.0 - step / 10, "grad_norm": None} for step in range(1, 6)]
    (tmp_path / "base" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = io.StringIO()
    path = print_report(configs, Console(file=stream, width=160))
    text = stream.getvalue()
    assert path == tmp_path / "report.html"
    for piece in ("lineage", "cold (sft): not run", "75.0 (30.1 to 95.4), cons@2 75.0", f"written: {path}"):
        assert piece in text
    page = path.read_text()
    assert page.count("data:image/png;base64,iVBOR") == 1
    assert "<td>75.0 (30.1 to 95.4), cons@2 75.0</td>" in page
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


def test_nothing_is_written_where_nothing_ran(tmp_path):
    cfg = load_config(["experiment=tiny", f"root={tmp_path}/none"], check_files=False)
    assert print_report([cfg], Console(file=io.StringIO(), width=160)) is None
    assert list(tmp_path.iterdir()) == []


def test_points_leave_out_what_is_no_number():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3}, {"step": 4, "loss": 1}]
    assert points(rows, "loss") == ([1, 4], [2.0, 1.0])


def test_cells_are_escaped():
    assert table_html(["<a>"], [["b & c"]]) == ("<table><tr><th>&lt;a&gt;</th></tr><tr><td>b &amp; c</td></tr></table>")
