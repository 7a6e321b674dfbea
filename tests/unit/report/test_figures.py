"""Figures for documents on run folders made by hand: the numbers that are drawn, the table, what is refused."""

import json
import re
import sys

import pytest

from r1train.errors import DataError
from r1train.log.result import EvalSummary, StageResult, write_result
from r1train.report.figures import (
    Curve,
    curves_svg,
    mean_curve,
    read_curves,
    read_stages,
    stages_markdown,
    stages_svg,
)

KEYS = ["reward/accuracy", "response_tokens"]
SCHEDULE = [{"id": name, "title": title} for name, title in (("b", "base"), ("s", "sums SFT"), ("e", "end"))]


@pytest.fixture
def tool(repo, monkeypatch):
    """tools/plot_metrics.py's main, called with words of a command line."""
    monkeypatch.syspath_prepend(str(repo / "tools"))
    import plot_metrics

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["plot_metrics.py", *words])
        return plot_metrics.main()

    return call


def run_folder(folder, accuracy):
    folder.mkdir(parents=True)
    rows = [{"step": step, "reward/accuracy": value, "response_tokens": 20 * step} for step, value in accuracy]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def summary(share, *, samples=512):
    return EvalSummary(
        pass_at_1=share,
        ci_low=share - 0.04,
        ci_high=share + 0.05,
        format_rate=1.0,
        mean_response_tokens=30.0,
        problems=512,
        samples=samples,
    )


def root_folder(root, shares):
    """A root whose schedule is SCHEDULE; shares: step id -> pass@1, None: a stage that was not evaluated."""
    for step, share in shares.items():
        numbers = {} if share is None else {"sums": summary(share, samples=2048 if step == "e" else 512)}
        write_result(
            root / step, StageResult(id=step, title=step, stage="sft", seconds=1, evals=numbers, main_task="sums")
        )
        (root / step / "manifest.json").write_text(json.dumps({"config": {"schedule": {"steps": SCHEDULE}}}))
    return root


def test_curves_and_their_mean(tmp_path):
    one = read_curves(run_folder(tmp_path / "a", [(1, 0.25), (2, None), (3, 0.75)]), KEYS)
    two = read_curves(run_folder(tmp_path / "b", [(1, 0.75), (2, 0.5), (3, 1.0), (4, 1.0)]), KEYS)
    assert one["reward/accuracy"] == Curve([1, 3], [0.25, 0.75])
    # Step 2 is missing in one, step 4 in the other: (0.25 + 0.75) / 2 and (0.75 + 1) / 2 are left.
    assert mean_curve([one["reward/accuracy"], two["reward/accuracy"]]) == Curve([1, 3], [0.5, 0.875])


def test_a_figure_has_a_line_per_seed_and_a_mean_and_is_repeatable(tmp_path):
    seeds = [read_curves(run_folder(tmp_path / name, [(1, 0.1), (2, 0.9)]), KEYS) for name in "abc"]
    svg = curves_svg({"RL 1": seeds[:2], "R1-Zero": seeds[2:]}, KEYS)
    assert svg == curves_svg({"RL 1": seeds[:2], "R1-Zero": seeds[2:]}, KEYS)
    text = svg.decode()
    # Per panel: two thin lines (each seed of RL 1), two thick ones (both means).
    thin, thick = text.count("stroke-opacity: 0.5; stroke-width: 0.7"), text.count("stroke-width: 1.8")
    assert (thin, thick) == (2 * 2, 2 * 2 + 2)  # and the two of the legend
    for word in ("RL 1", "R1-Zero", "accuracy (reward)", "mean response tokens"):
        assert f">{word}<" in text
    assert not re.search(r"[ \t]$", text, re.MULTILINE)


def test_missing_files_and_keys_are_refused(tmp_path):
    folder = run_folder(tmp_path / "a", [(1, 0.5)])
    with pytest.raises(DataError, match=r"no numbers of 'kl'. Fix: one of response_tokens, reward/accuracy"):
        read_curves(folder, ["kl"])
    with pytest.raises(DataError, match="is not there"):
        read_curves(tmp_path / "none", KEYS)
    with pytest.raises(DataError, match="no run folders with a manifest"):
        read_stages(tmp_path / "none")


def test_stages_in_the_order_of_the_schedule(tmp_path):
    roots = {
        "seed 1": read_stages(root_folder(tmp_path / "one", {"e": 0.9, "b": 0.1, "s": 0.5})),
        "seed 2": read_stages(root_folder(tmp_path / "two", {"b": 0.2, "s": None, "e": 0.8})),
    }
    assert list(roots["seed 1"]) == ["base", "sums SFT", "end"]
    assert stages_markdown(roots).splitlines() == [
        "| stage | seed 1 | seed 2 | problems |",
        "|---|---|---|---|",
        "| base | 10.0 % [6.0, 15.0] | 20.0 % [16.0, 25.0] | 512 |",
        "| sums SFT | 50.0 % [46.0, 55.0] | - | 512 |",
        "| end | 90.0 % [86.0, 95.0] | 80.0 % [76.0, 85.0] | 512, 2048 samples |",
    ]
    text = stages_svg(roots).decode()
    assert all(f">{word}<" in text for word in ("base", "sums SFT", "end", "seed 1", "seed 2"))


def test_the_tool(tool, tmp_path, capsys):
    runs = [f"RL 1={run_folder(tmp_path / name, [(1, 0.1), (2, 0.9)])}" for name in "ab"]
    assert tool("curves", "--out", str(tmp_path / "x.svg"), *runs, "--keys", *KEYS) == 0
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")
    root = root_folder(tmp_path / "one", {"b": 0.1})
    assert tool("stages", "--out", str(tmp_path / "y.svg"), f"seed 1={root}") == 0
    assert "| base | 10.0 % [6.0, 15.0] | 512 |" in capsys.readouterr().out
    assert tool("curves", "--out", str(tmp_path / "no" / "x.svg"), *runs, "--keys", *KEYS) == 2
    assert "is not a folder" in capsys.readouterr().err
