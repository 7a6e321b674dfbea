"""The stage table: rows in schedule order, missing values, the printed text and the memory line."""

import io

from rich.console import Console

from r1train.config.schema import ScheduleStep
from r1train.log.memory import PeakMemory, save_peak
from r1train.log.result import EvalSummary, StageResult, write_result
from r1train.report.table import memory_line, print_table, stage_rows

STEPS = (
    ScheduleStep(id="01_prepare", stage="prepare", title="prepare data"),
    ScheduleStep(id="02_sft", stage="sft", title="cold-start SFT"),
    ScheduleStep(id="03_grpo", stage="grpo", title="GRPO 1"),
)
NUMBERS = EvalSummary(
    pass_at_1=0.4125,
    ci_low=0.36,
    ci_high=0.467,
    format_rate=0.985,
    mean_response_tokens=31.26,
    problems=200,
    samples=800,
)
OTHER = EvalSummary(
    pass_at_1=0.1, ci_low=0.0, ci_high=0.2, format_rate=0.5, mean_response_tokens=1.0, problems=20, samples=80
)


def fill(root):
    write_result(
        root / "02_sft",
        StageResult(
            id="02_sft",
            title="cold-start SFT",
            stage="sft",
            steps=1200,
            tokens=1_228_800,
            seconds=31.25,
            loss=0.51234,
            heldout_loss=0.6931472,
            evals={"gcd": OTHER, "chain_sum": NUMBERS},
            main_task="chain_sum",
        ),
    )
    write_result(root / "01_prepare", StageResult(id="01_prepare", title="prepare data", stage="prepare", seconds=2.0))


def test_rows(tmp_path):
    fill(tmp_path)
    assert stage_rows(tmp_path, STEPS) == [
        ("prepare data", "-", "-", "2.0", "-", "-", "-", "-", "-", "-", ""),
        (
            "cold-start SFT",
            "1,200",
            "1,228,800",
            "31.2",
            "0.5123",
            "2.000",
            "41.2 % (36.0 to 46.7)",
            "200 x 4",
            "98.5 %",
            "31.3",
            "",
        ),
        ("GRPO 1", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-"),
    ]


def test_printed_table(tmp_path):
    fill(tmp_path)
    save_peak(tmp_path, PeakMemory(peak_bytes=3_456_000_000, processes=5, measure="pss"))
    stream = io.StringIO()
    rows = print_table(tmp_path, STEPS, Console(file=stream, width=160))
    assert rows == stage_rows(tmp_path, STEPS)
    text = stream.getvalue()
    order = [text.index(step.title) for step in STEPS]
    assert order == sorted(order)
    for piece in ("200 x 4", "41.2 % (36.0 to 46.7)", "1,228,800", "mean response tokens"):
        assert piece in text
    assert text.rstrip().endswith("peak memory of all processes: 3.46 GB (5 processes, pss)")


def test_no_memory_line_without_measurement(tmp_path):
    assert memory_line(tmp_path) is None
