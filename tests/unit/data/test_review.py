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


def test_new_rows_join_and_decisions_stay(tmp_path):
    """A judge that answers the second time lets another row through, and one less; nobody's work is lost."""
    path = tmp_path / "review.jsonl"
    export_review(path, ROWS[:2])
    decide(path, row0="reject", row1="edit")
    assert export_review(path, ROWS[1:]) == 1
    with pytest.raises(DataError, match="1 of 2 rows are still pending. Fix"):
        import_review(path, ROWS[1:])
    statuses = {row["id"]: row["status"] for row in map(json.loads, path.read_text().splitlines())}
    assert statuses == {"0": "reject", "1": "edit", "2": "pending"}
    before = path.read_bytes()
    assert export_review(path, ROWS) == 0 and path.read_bytes() == before


@pytest.mark.parametrize("status", ["accept", "pending"])
def test_a_response_that_nobody_saw_is_not_accepted(tmp_path, status):
    """Rewritten since, or edited by a person who left the status as it was: pending again, and the text is kept."""
    path = tmp_path / "review.jsonl"
    export_review(path, ROWS[:1])
    row = json.loads(path.read_text()) | {"status": status, "response": "mine", "comment": "mind this"}
    path.write_text(json.dumps(row) + "\n")
    assert export_review(path, ROWS[:1]) == 1
    with pytest.raises(DataError, match=r"1 of 1 rows are still pending \(1 of them had another response, see earlier"):
        import_review(path, ROWS[:1])
    found = json.loads(path.read_text())
    assert found == row | {"status": "pending", "response": "r0", "earlier": ["mine"]}
    rewritten = [{**ROWS[0], "response": "r0 again"}]
    assert export_review(path, rewritten) == 1
    assert json.loads(path.read_text())["earlier"] == ["mine", "r0"]
    path.write_text(path.read_text().replace("pending", "accept"))
    assert export_review(path, rewritten) == 0
    assert import_review(path, rewritten).rows == rewritten


def test_bad_files(tmp_path):
    path = tmp_path / "review.jsonl"
    export_review(path, ROWS[:2])
    decide(path, row0="maybe")
    for review in (export_review, import_review):
        with pytest.raises(DataError, match="unknown status maybe"):
            review(path, ROWS)
    decide(path)
    first = path.read_text().splitlines()[0]
    path.write_text(path.read_text() + first.replace("accept", "reject") + "\n")
    before = path.read_bytes()
    for review in (export_review, import_review):
        with pytest.raises(DataError, match="1 ids occur more than once, for example .'0'."):
            review(path, ROWS)
    assert path.read_bytes() == before
