"""In every layout each sample is graded once, and every rank of a replica gets the same scores."""

import json
from pathlib import Path

import pytest
from assembly import load_ranks

LAYOUTS = ("single", "dp2", "ep2", "pp2", "tp2", "pp2_ep2", "tp2_pp2")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_reach_every_rank_and_one_rank_grades(results: Path, layout: str):
    """Prompt n has answer n, samples 0 to 2 answer their index: 15 answers to grade, and one more per rank's prompt."""
    ranks = load_ranks(results, "grading", layout)
    replicas = {rank["dp_rank"] for rank in ranks}
    assert sum(rank["scored"] for rank in ranks) == 15 + 5
    assert sum(rank["scored"] > 0 for rank in ranks) == len(replicas)
    found: dict[str, list[float]] = {}
    for rank in ranks:
        for prompt, scores in rank["scores"].items():
            values = [score.parts["accuracy"] for score in scores]
            assert found.setdefault(prompt, values) == values
            assert [score.parts["format"] for score in scores] == [1.0, 1.0, 1.0, 0.0]
        assert [score.parts["accuracy"] for score in rank["again"]] == [1.0] * len(rank["scores"])
    assert found == {f"p{n}": [float(n == index and index < 3) for index in range(4)] for n in range(5)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_suites_are_graded_once_and_written_by_rank_0(results: Path, layout: str):
    ranks = load_ranks(results, "grading", layout)
    assert sum(rank["graded"] for rank in ranks) == 15
    assert {rank["report"].key for rank in ranks} == {ranks[0]["report"].key}
    for rank in ranks:
        assert rank["report"].correct_by_problem == {"p0": 1, "p1": 1, "p2": 1, "p3": 0, "p4": 0}
    lines = (results / f"grading_{layout}" / "samples_numbers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["prompt"]["id"] for row in rows] == [f"p{n}" for n in range(5)]
    assert [score["value"] for score in rows[2]["scores"]] == [0.0, 0.0, 1.0, 0.0]
