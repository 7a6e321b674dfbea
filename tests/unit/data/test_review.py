"""Review files: out, decided, back in."""

import json

import pytest

from r1train.data.review import export_review, import_review
from r1train.errors import DataError

ROWS = [{"id": str(n), "task": "t", "prompt": "p", "response": f"r{n}", "parts": {"format": 1.0}} for n in range(3)]


def decide(path, **statuses):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        status = statuses.get(f"row{row['id']}", "accept")
        row |= {"status": status, "response": "better" if status == "edit" else row["response"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_round_trip(tmp_path):
    path = tmp_path / "review.jsonl"
    assert export_review(path, ROWS) == 3
    with pytest.raises(DataError, match="3 of 3 rows are still pending.*set status to accept"):
        import_review(path, ROWS)
    decide(path, row1="reject", row2="edit")
    assert export_review(path, ROWS) == 0, "decisions are not overwritten"
    reviewed = import_review(path, ROWS)
    assert reviewed.rows == [ROWS[0], {**ROWS[2], "response": "better"}]
    assert reviewed.counts == {"accept": 1, "reject": 1, "edit": 1}


def test_bad_files(tmp_path):
    path = tmp_path / "review.jsonl"
    export_review(path, ROWS[:2])
    with pytest.raises(DataError, match="1 of 3 rows are not in it, for example 2"):
        import_review(path, ROWS)
    decide(path, row0="maybe")
    with pytest.raises(DataError, match="unknown status maybe"):
        import_review(path, ROWS[:2])
