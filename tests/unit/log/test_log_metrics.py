"""metrics.jsonl across kills and resumes, TensorBoard's purge, and the comparison of two runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from r1train.log.compare import first_difference, means
from r1train.log.metrics import MetricsWriter, read_metrics, truncate_after

REPO = Path(__file__).resolve().parents[3]
TOOL = REPO / "tools" / "compare_loss.py"


def tool(*arguments):
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPO)})


def run(folder, steps, *, start_step, offset=0.0, tensorboard=False):
    with MetricsWriter(folder, rank=0, start_step=start_step, tensorboard=tensorboard) as writer:
        for step in steps:
            writer.write(step, {"loss": 1.0 / step + offset, "tokens": 64 * step})


def test_resume_writes_the_same_file_as_an_uninterrupted_run(tmp_path):
    run(tmp_path / "whole", range(1, 8), start_step=0)
    run(tmp_path / "killed", range(1, 6), start_step=0)
    path = tmp_path / "killed" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    run(tmp_path / "killed", range(4, 8), start_step=3)
    assert path.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert read_metrics(path)[2] == {"step": 3, "loss": 1.0 / 3, "tokens": 192}


def test_lines_are_on_disk_before_the_file_is_closed(tmp_path):
    writer = MetricsWriter(tmp_path, rank=0, start_step=0, tensorboard=False)
    writer.write(1, {"loss": 0.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'
    writer.close()
    writer.close()


def test_truncate_after(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert truncate_after(path, 5) == 0 and not path.exists()
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert truncate_after(path, 2) == 2
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert truncate_after(path, 0) == 0
    assert path.read_text() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_torn_line_that_is_whole_json_is_dropped_too(tmp_path):
    # Cut just before the newline: appending to it would join two lines.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    assert truncate_after(tmp_path / "metrics.jsonl", 9) == 1


def test_other_ranks_write_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", rank=1, start_step=0) as writer:
        writer.write(1, {"loss": 0.5})
    assert not (tmp_path / "run").exists()


def test_not_finite_becomes_null(tmp_path):
    with MetricsWriter(tmp_path, rank=0, start_step=0, tensorboard=False) as writer:
        writer.write(1, {"loss": float("nan"), "kl": float("inf"), "stage": "sft"})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "kl": None, "stage": "sft"}


def test_tensorboard_shows_the_resumed_run_only_once(tmp_path):
    run(tmp_path, range(1, 6), start_step=0, offset=100.0, tensorboard=True)
    run(tmp_path, range(4, 7), start_step=3, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    values = {event.step: event.value for event in events.Scalars("loss")}
    assert values == pytest.approx({1: 101.0, 2: 100.5, 3: 100 + 1 / 3, 4: 0.25, 5: 0.2, 6: 1 / 6}, rel=1e-6)


ROWS = [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "time/step": 0.1}, {"step": 2, "loss": 1.0, "grad_norm": 0.5}]


@pytest.mark.parametrize(
    ("change", "rtol", "difference"),
    [
        ({}, None, None),
        ({"time/step": 9.0}, None, None),
        ({"loss": 1.0000000000000002}, None, "step 2: loss = 1.0 against 1.0000000000000002"),
        ({"loss": 1.0000000000000002}, 1e-12, None),
        ({"loss": 1.001}, 1e-3, None),
        ({"loss": 1.002}, 1e-3, "step 2: loss = 1.0 against 1.002"),
        ({"grad_norm": None}, 1e-3, "step 2: grad_norm = 0.5 against None"),
        ({"lr": 0.1}, None, "step 2: lr is missing in the first"),
        ({"step": 3}, None, "step 2 against step 3"),
    ],
)
def test_first_difference(change, rtol, difference):
    assert first_difference(ROWS, [ROWS[0], {**ROWS[1], **change}], rtol=rtol) == difference


def test_first_difference_of_lengths_and_chosen_keys():
    assert first_difference(ROWS, ROWS[:1], rtol=None) == "2 steps against 1"
    changed = [ROWS[0], {**ROWS[1], "loss": 3.0}]
    assert first_difference(ROWS, changed, rtol=None, keys=["grad_norm"]) is None
    assert first_difference(ROWS, changed, rtol=None, keys=["lr"]) == "step 1: lr is missing in the second"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [(["--exact"], 1, "step 2: loss"), (["--rtol", "1e-3"], 0, "equal"), (["--rtol", "1e-6"], 1, "step 2: loss")],
)
def test_compare_loss_tool(tmp_path, arguments, code, said):
    paths = []
    for name, loss in (("a", 1.0), ("b", 1.0001)):
        paths.append(str(tmp_path / f"{name}.jsonl"))
        rows = [ROWS[0], {**ROWS[1], "loss": loss}]
        Path(paths[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = tool(*paths, *arguments)
    assert (done.returncode, said in done.stdout) == (code, True), done
    same = tool(paths[0], paths[0], "--exact")
    assert (same.returncode, same.stdout) == (0, "equal: 2 steps\n")


def test_compare_loss_tool_names_a_missing_file(tmp_path):
    missing = str(tmp_path / "no.jsonl")
    done = tool(missing, missing, "--exact")
    assert done.returncode == 2 and "no.jsonl" in done.stderr and "Traceback" not in done.stderr


def test_means_by_hand():
    rows = [{"step": step, "loss": float(step), "load": [1.0], "late": step} for step in range(1, 6)]
    del rows[0]["late"]
    assert means(rows, steps=2) == [
        {"step": 2, "loss": 1.5},
        {"step": 4, "loss": 3.5, "late": 3.5},
        {"step": 5, "loss": 5.0, "late": 5.0},
    ]


def test_compare_loss_tool_compares_means(tmp_path):
    """0.875 and 1.125 in turn against 1.0: every step differs by an eighth, every mean of two by nothing."""
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for path, change in zip(paths, (0.0, 0.125), strict=True):
        rows = [{"step": step, "loss": 1.0 + change * (-1) ** step, "load": [step, change]} for step in range(1, 7)]
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_step = tool(*paths, "--rtol", "0.01", "--keys", "loss")
    assert (by_step.returncode, by_step.stdout) == (1, "step 1: loss = 1.0 against 0.875\n")
    by_mean = tool(*paths, "--rtol", "0.01", "--mean-of", "2")
    assert (by_mean.returncode, by_mean.stdout) == (0, "equal: 3 means of 2 steps\n")
    assert tool(*paths, "--exact", "--mean-of", "0").returncode == 2
