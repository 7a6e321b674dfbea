"""Answers that no verifier takes are named before anything is generated."""

import time
from types import SimpleNamespace

import pytest

from r1train.errors import DataError
from r1train.reward.accuracy import verify
from r1train.reward.references import check_references, check_task_names

SNIPPET = {"tests": [{"snippet": "assert f(1) == 1"}]}


def problem(task, answer, metadata=None):
    return SimpleNamespace(id="p1", task=task, answer=answer, metadata=metadata or {})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (problem("gsm8k", "three"), "the reference answer 'three' is no plain number. Fix: a number as 72"),
        (problem("gsm8k", "x^2"), "'x.2' is no plain number"),
        (problem("mmlu", "b"), "'b' is no option"),
        (problem("multiple_choice", "C", {"choices": ["one", "two"]}), "'C' is no option"),
        (problem("code", "-"), "no tests in its metadata"),
        (problem("code", "-", {"tests": ["f(1)"]}), "a test is str. Fix"),
        (problem("code", "-", {**SNIPPET, "code_language": "cpp"}), "a snippet tests Python"),
        (problem("general", "-", {"language": "tlh"}), "language = 'tlh' is not known. Fix: one of en, de"),
    ],
)
def test_what_would_stop_the_run_is_named(bad, message):
    good = problem("gsm8k", "1,072")
    pattern = f"rl.jsonl: 1 of 2 problems cannot be graded:\n  - p1 .task {bad.task}.: .*{message}(.|\n)*Fix: correct"
    with pytest.raises(DataError, match=pattern) as error:
        check_references([good, bad], place="rl.jsonl", languages=("en", "de"))
    assert error.value.exit_code == 2


def test_the_same_references_are_refused_here_and_by_the_verifier():
    """A verifier that refuses more than the check would stop a run after its first rollout."""
    for task, answer, metadata in (("gsm8k", "1/2", {}), ("mmlu", "B", {"choices": ["x", "y"]}), ("gsm8k", "2/4", {})):
        entry = {"question": "?", "answer": answer, "metadata": metadata}
        try:
            verify(task, answer, entry)
        except DataError as error:
            with pytest.raises(DataError, match=str(error)[:40]):
                check_references([problem(task, answer, metadata)], place="x")
        else:
            check_references([problem(task, answer, metadata)], place="x")


def test_what_stops_nothing_is_let_through():
    fine = [problem("math", r"\frac{1}{2"), problem("general", "-"), problem("code", "-", SNIPPET)]
    fine += [problem("chain_sum", "7"), problem("gsm8k", "7", {"language": "tlh"})]
    check_references(fine, place="x")


def test_a_few_of_many_are_shown_and_a_large_set_takes_seconds():
    many = [problem("gsm8k", "72")] * 50_000 + [problem("gpqa_diamond", "A", {"choices": list("abcd")})] * 50_000
    started = time.process_time()
    check_references(many, place="x")
    assert time.process_time() - started < 10
    with pytest.raises(DataError, match="x: 7 of 7 problems(.|\n)*and 2 more\nFix") as error:
        check_references([problem("gsm8k", "?")] * 7, place="x")
    assert str(error.value).count("  - p1") == 5


def test_task_names():
    check_task_names(["gsm8k", "math", "code", "mmlu", "general", "chain_sum"], place="x")
    with pytest.raises(DataError, match="rl.jsonl: unknown task 'nonsense_task'. Fix: .*'general'"):
        check_task_names(["gsm8k", "nonsense_task"], place="rl.jsonl")


def test_an_open_task_has_no_verifier():
    with pytest.raises(DataError, match="task 'general' has nothing to verify"):
        verify("general", "x", {"question": "?", "answer": "-", "metadata": {}})
