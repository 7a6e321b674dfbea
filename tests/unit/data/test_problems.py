"""Problem sets, solutions and cold-start examples: every answer is scored by the task's own verifier."""

import re
from collections import Counter

import pytest
import reasoning_gym

from r1train.config.schema_train import TaskConfig
from r1train.data.cold_start import STYLES, apportion, cold_start_rows, styled_response, worked_text
from r1train.data.documents import gsm8k_rows
from r1train.data.problems import (
    Problem,
    assert_disjoint,
    build_problem_sets,
    is_heldout,
    normalised,
    short_question,
)
from r1train.data.solutions import solution_steps
from r1train.errors import DataError

STYLE_SHARES = {"steps": 0.3, "check": 0.1, "direct": 0.6}
PARAMS = {
    "chain_sum": {"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 2, "allow_negation": True},
    "gcd": {"max_numbers": 3, "max_value": 99},
    "count_bits": {"max_n": 9999},
    "letter_counting": {"min_words": 2, "max_words": 5},
    "number_sorting": {"max_numbers": 5},
    "spell_backward": {"max_word_len": 7},
}


def task(name, **changes):
    sizes = {"train": 40, "heldout": 12, "cold_start": 30, "params": PARAMS.get(name, {}), "styles": STYLE_SHARES}
    return TaskConfig(name=name, **{**sizes, **changes})


def build(config, worked=0, seed=5, seen=None):
    return build_problem_sets(config, worked, seed=seed, seen=set() if seen is None else seen)


def score(problem, answer):
    entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.metadata}
    return reasoning_gym.get_score_answer_fn(problem.task)(answer, entry)


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_every_style_is_right_by_the_tasks_verifier(name):
    config = task(name)
    sets = build(config, worked=20)
    assert [len(x) for x in (sets.train, sets.heldout, sets.cold_start, sets.worked)] == [40, 12, 30, 20]
    rows = cold_start_rows(sets.cold_start, config, seed=1)
    assert Counter(row["style"] for row in rows) == {"steps": 9, "check": 3, "direct": 18}
    for problem, row in zip(sets.cold_start, rows, strict=True):
        match = re.fullmatch(r"<think>(.+)</think><answer>(.+)</answer>", row["response"])
        assert score(problem, match[2]) == 1.0
        assert score(problem, match[2] + "1") < 1.0
        assert row["prompt"] == problem.question


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_steps_end_in_the_answer(name):
    for problem in build(task(name)).train:
        last = solution_steps(problem)[-1]
        if name == "number_sorting":
            assert score(problem, "[" + ", ".join(f'"{x}"' for x in last.split(",")) + "]") == 1.0
        elif name == "chain_sum":
            assert int(last.split("=")[1]) == int(problem.answer)
        elif name == "gcd":
            assert re.fullmatch(rf"\d+%{problem.answer}=0", last)
        else:
            assert re.split("[=:]", last)[-1] == problem.answer


@pytest.mark.parametrize(
    ("name", "metadata", "steps"),
    [
        ("chain_sum", {"expression": "4 + 7 - 13 + 9"}, ["4+7=+011", "+011-13=-002", "-002+9=+007"]),
        ("chain_sum", {"expression": "-4 - -7"}, ["-4-(-7)=+03"]),
        ("gcd", {"numbers": [12, 18, 4]}, ["12%18=12", "18%12=6", "12%6=0", "6%4=2", "4%2=0"]),
        ("count_bits", {"number": 5}, ["5:1", "2:1", "1:2"]),
        ("letter_counting", {"span": ["Hush", "oh", "a"], "target_letter": "h"}, ["Hush:2", "oh:3", "a:3"]),
        (
            "number_sorting",
            {"original_numbers": ["3", "-1", "2.5"], "direction": "descending"},
            ["3", "3,-1", "3,2.5,-1"],
        ),
        ("spell_backward", {"word": "sun"}, ["s", "us", "nus"]),
        ("gsm8k", {"solution": "1+1=2\n2+2=4"}, ["1+1=2", "2+2=4"]),
    ],
)
def test_steps_by_hand(name, metadata, steps):
    assert solution_steps(Problem("x", name, "q", "a", metadata)) == steps


def test_styles_by_hand():
    problem = Problem("x", "chain_sum", "4+7-3=", "8", {"expression": "4 + 7 - 3"})
    texts = {
        "steps": "<think>4+7=+11 +11-3=+08</think><answer>8</answer>",
        "check": "<think>4+7=+11 +11-3=+08 Check: +11-3=+08 yes.</think><answer>8</answer>",
        "direct": "<think>I see it.</think><answer>8</answer>",
    }
    texts |= {f"{style}_line": f"{text}\n" for style, text in texts.items()}
    assert {style: styled_response(problem, style) for style in STYLES} == texts
    assert worked_text(problem) == "4+7-3= : 4+7=+11 +11-3=+08 so 8"
    row = cold_start_rows([problem], task("chain_sum", styles={"steps": 1.0}), seed=0)[0]
    assert row == {
        "id": "x",
        "task": "chain_sum",
        "prompt": "4+7-3=",
        "response": "<think>4+7=+11 +11-3=+08</think><answer>8</answer>",
        "style": "steps",
    }


def test_short_question_keeps_other_tasks():
    assert short_question("chain_sum", "State ...", {"expression": "4 + 7 - 3"}) == "4+7-3="
    assert short_question("lcm", "Find the LCM of 3, 4", {"numbers": [3, 4]}) == "Find the LCM of 3, 4"


@pytest.mark.parametrize("seed", [0, 1])
def test_disjoint_whatever_the_sizes(seed):
    """Held-out problems of one build never train in another one, of other sizes or seed."""
    sets = build(task("chain_sum", train=300, heldout=60, cold_start=100), worked=100, seed=seed)
    other = build(task("chain_sum", train=900, heldout=5, cold_start=3), worked=400, seed=seed + 7)
    assert_disjoint(sets.train, sets.heldout, sets.cold_start, sets.worked)
    heldout = {normalised(problem.question) for problem in sets.heldout}
    assert len(heldout) == 60
    used = {normalised(problem.question) for x in (other.train, other.cold_start, other.worked) for problem in x}
    assert len(used) == 1303
    assert not heldout & used
    assert all(is_heldout(problem.question) for problem in sets.heldout)
    assert not any(is_heldout(question) for question in used)


def test_normalised_ignores_case_and_space():
    assert normalised(" 4 + 7 =\n") == normalised("4+7=")
    assert is_heldout("Gcd(4, 2)=") == is_heldout("gcd(4,2)=")


def test_assert_disjoint_fails_on_a_shared_question():
    first = Problem("a", "t", "4 + 7=", "11", {})
    second = Problem("b", "t", "4+7 =", "11", {})
    with pytest.raises(DataError, match=r"1 questions .*\['a', 'b'\]"):
        assert_disjoint([first], [second], [])
    with pytest.raises(DataError):
        assert_disjoint([first, second], [])
    assert_disjoint([first], [Problem("c", "t", "4+8=", "12", {})])


def test_deterministic_and_seeded():
    assert build(task("chain_sum"), worked=10) == build(task("chain_sum"), worked=10)
    assert build(task("chain_sum")).train != build(task("chain_sum"), seed=6).train


def test_later_tasks_avoid_questions_already_taken():
    seen = set()
    first = build(task("chain_sum"), seen=seen)
    again = build(task("chain_sum"), seen=seen)
    assert_disjoint(first.train, first.heldout, first.cold_start, again.train, again.heldout, again.cold_start)


def test_gsm8k_keeps_its_split():
    config = task("gsm8k", train=200, heldout=64, cold_start=100)
    sets = build(config)
    assert_disjoint(sets.train, sets.heldout, sets.cold_start)
    train = {row["question"]: row for row in gsm8k_rows("train")}
    heldout = {row["question"]: row for row in gsm8k_rows("heldout")}
    assert all(heldout[problem.question]["answer"] == problem.answer for problem in sets.heldout)
    assert all(train[problem.question]["answer"] == problem.answer for problem in (*sets.train, *sets.cold_start))
    rows = cold_start_rows(sets.cold_start, config, seed=0)
    by_question = {row["prompt"]: row for row in rows}
    for problem in sets.cold_start:
        assert by_question[problem.question]["response"].endswith(f"<answer>{problem.answer}</answer>")
        assert "<<" not in by_question[problem.question]["response"]


@pytest.mark.parametrize(
    ("config", "worked", "message"),
    [
        (task("no_such_task"), 0, "not registered"),
        (task("chain_sum", params={"min_term": 3}), 0, "min_term"),
        (task("chain_sum", params={"min_terms": 3, "max_terms": 2}), 0, "max_terms must be"),
        (
            task("chain_sum", train=400, params={"max_terms": 2, "max_digits": 1}),
            0,
            r"not enough distinct problems, only 178 of 400 train",
        ),
        (task("gsm8k", train=290), 0, "10 of 30 cold_start"),
        (task("gsm8k"), 1, "builtin:gsm8k"),
    ],
)
def test_impossible_tasks(config, worked, message):
    with pytest.raises(DataError, match=message):
        build(config, worked=worked)


@pytest.mark.parametrize(
    ("name", "styles", "message"),
    [
        ("chain_sum", {"steps": 0.5, "guess": 0.5}, "unknown styles guess"),
        ("chain_sum", {"steps": 1.5, "direct": -0.5}, "not shares"),
        ("chain_sum", {"steps": 0.0}, "not shares"),
        ("chain_sum", {}, "not shares"),
        ("lcm", {"steps": 1.0}, "no written solutions"),
    ],
)
def test_impossible_styles(name, styles, message):
    config = task(name, styles=styles)
    with pytest.raises(DataError, match=message):
        cold_start_rows(build(config).cold_start, config, seed=0)


def test_apportion():
    assert apportion([0.5, 0.3, 0.2], 10) == [5, 3, 2]
    assert apportion([1, 1, 1], 10) == [4, 3, 3]
    assert apportion([4000, 150], 7) == [7, 0]
