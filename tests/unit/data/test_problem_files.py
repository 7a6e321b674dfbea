"""Problems from files: the rows of benchmarks' own files, their split, the template, and what is wrong with a file."""

import json

import pytest

from r1train.config.schema_train import TaskConfig
from r1train.data.problem_files import problem_rows
from r1train.data.problems import build_problem_sets
from r1train.errors import DataError


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def task(folder, **changes):
    fields = {"name": "gsm8k", "train": 2, "heldout": 1, "cold_start": 1, "params": {}, "styles": {"steps": 1.0}}
    files = {"train_file": str(folder / "train.jsonl"), "heldout_file": str(folder / "test.jsonl")}
    return TaskConfig(**{**fields, **files, **changes})


@pytest.fixture
def folder(tmp_path):
    questions = ["Shared?", "One ?", "one?", "Two?", "Three?"]
    rows = [{"id": f"t/{n}", "problem": text, "answer": str(n)} for n, text in enumerate(questions)]
    rows[3]["solution"] = "1 + 1 = <<1+1=2>>2 pens\nso 2\n#### 2"
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"question": "Shared?", "answer": "Half of 14.\n#### 7"}])
    return tmp_path


def test_rows_of_both_kinds(folder):
    assert problem_rows(folder / "test.jsonl") == [{"id": "1", "question": "Shared?", "answer": "7"}]
    rows = problem_rows(folder / "train.jsonl")
    assert rows[1] == {"id": "t/1", "question": "One ?", "answer": "1"}
    assert rows[3] == {"id": "t/3", "question": "Two?", "answer": "3", "solution": "1 + 1 = 2 pens\nso 2"}


def test_sets_keep_the_files_split_and_take_each_question_once(folder):
    """A question of the test file is never trained on; one that differs in case and spaces is the same."""
    template = "{question}\nEnd with \\boxed{}."
    sets = build_problem_sets(task(folder, template=template), 0, seed=1, seen=set())
    asked = {name: [one.question for one in vars(sets)[name]] for name in ("heldout", "train", "cold_start")}
    end = "\nEnd with \\boxed{}."
    assert asked == {
        "heldout": ["Shared?" + end],
        "train": ["One ?" + end, "Two?" + end],
        "cold_start": ["Three?" + end],
    }
    assert sets.train[1].row() == {
        "id": "gsm8k/train/000001",
        "task": "gsm8k",
        "question": "Two?" + end,
        "answer": "3",
        "metadata": {"source": "t/3", "solution": "1 + 1 = 2 pens\nso 2"},
    }


def test_other_tasks_and_single_sets(folder):
    only = task(folder, name="math", train=3, heldout=0, cold_start=0, heldout_file=None)
    assert [one.id for one in build_problem_sets(only, 0, seed=1, seen=set()).train][-1] == "math/train/000002"
    with pytest.raises(DataError, match="only 3 of 9 train"):
        build_problem_sets(task(folder, train=9, cold_start=0), 0, seed=1, seen=set())
    with pytest.raises(DataError, match="worked examples are not generated"):
        build_problem_sets(only, 5, seed=1, seen=set())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "it has no rows"),
        (["{"], "1 of 1 rows are malformed:\n  - line 1: not JSON"),
        ([{"question": "a?", "answer": "1"}, {"text": "b?", "answer": "2"}], "line 2: no text in any of the fields"),
        ([{"question": "a?"}], "field 'answer' is missing"),
        ([{"id": 1, "question": "a?", "answer": "1"}, {"id": 1, "question": "b?", "answer": "2"}], "1 ids occur more"),
    ],
)
def test_bad_files(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        problem_rows(write(tmp_path / "bad.jsonl", rows))
