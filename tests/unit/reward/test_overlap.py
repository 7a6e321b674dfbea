"""Scoring while responses still come: same results as at once, in any order, with hangs, crashes and code."""

import dataclasses
import random
import time

import pytest

from r1train.config.schema_rl import RewardConfig
from r1train.data.prompts import Prompt
from r1train.errors import ConfigError, DataError, EnvironmentProblem
from r1train.reward.grader import Grade, GradeItem, Grader
from r1train.reward.isolation import Isolation
from r1train.reward.jail import probe
from r1train.reward.score import Scorer, check_tasks

CFG = RewardConfig(name="t", accuracy=1.0, format=0.5, language=0.0, grader_timeout_s=8.0, grader_processes=2)
FORMULA = Prompt(id="m", task="math", question="?", answer="x+1", metadata={}, token_ids=(0,))
HANG = "9^{9^{9^{9}}}+x+1"


def response(answer):
    return f"<think>a</think><answer>{answer}</answer>"


def test_any_order_gives_the_scores_of_one_call():
    answers = ["x+1", "x", HANG, "1+x", "y", "x+1.0"]
    pairs = [(FORMULA, response(answer)) for answer in answers] + [(FORMULA, "<think>no answer")]
    with Scorer(CFG) as scorer:
        at_once = scorer.score(pairs)
        keys = list(range(len(pairs)))
        random.Random(0).shuffle(keys)
        for key in keys:
            scorer.submit(key, *pairs[key])
            scorer.poll()
        scores = scorer.collect()
        assert scorer.collect() == {}
    values = [score.value for score in at_once]
    assert values == [1.5, 0.5, 0.5, 1.5, 0.5, 1.5, 0.0]  # hanging the grader is worth what a wrong answer is
    assert [score.timed_out for score in at_once] == [False, False, True, False, False, False, False]
    assert sorted(scores) == list(range(len(pairs)))
    assert [scores[key].to_row() for key in range(len(pairs))] == [score.to_row() for score in at_once]


def test_graders_work_between_submissions():
    """Items are graded by the time of collect(), which then has nothing to wait for."""
    entry = {"question": "", "answer": "x+1", "metadata": {}}
    with Grader(processes=1, timeout_s=5.0) as grader:
        for _ in range(3):
            grader.submit(GradeItem("math", "1+x", entry))
        deadline = time.monotonic() + 60.0
        while len(grader._grades) < 3 and time.monotonic() < deadline:
            grader.poll()
            time.sleep(0.01)
        assert len(grader._grades) == 3
        assert grader.collect() == [Grade(1.0, None)] * 3


def test_an_error_leaves_nothing_behind():
    unknown = dataclasses.replace(FORMULA, task="no_such_task")
    with Scorer(CFG) as scorer:
        with pytest.raises(DataError, match="unknown task"):
            scorer.score([(FORMULA, response("x+1")), (unknown, response("1"))])
        assert [score.value for score in scorer.score([(FORMULA, response("x+1"))])] == [1.5]


def test_repetition_is_subtracted():
    cfg = dataclasses.replace(CFG, accuracy=0.0, grader_processes=0, repetition=0.5, repetition_words=1)
    prompt = dataclasses.replace(FORMULA, task="gsm8k", answer="42")
    with Scorer(cfg) as scorer:
        (score,) = scorer.score([(prompt, "no no no no")])
    assert score.value == pytest.approx(-0.375, abs=1e-12)
    assert score.parts == {"format": 0.0, "repetition": 0.75, "accuracy": 0.0}


@pytest.mark.skipif(probe().backend == "none", reason=f"no isolation on this host: {probe().note}")
def test_code_and_formulas_share_the_graders():
    tests = {"tests": [{"snippet": "assert twice(4) == 8"}]}
    code = Prompt(id="c", task="code", question="?", answer="", metadata=tests, token_ids=(0,))
    right, wrong, hangs = (f"```python\ndef twice(x): {body}\n```" for body in ("return 2 * x", "return 8.5", "exit()"))
    with Scorer(CFG) as scorer:
        check_tasks(CFG, {"code", "math"})
        answers = [(code, right), (FORMULA, "x+1"), (code, wrong), (code, hangs), (FORMULA, "x")]
        scores = scorer.score([(prompt, response(answer)) for prompt, answer in answers])
    assert [score.value for score in scores] == [1.5, 1.5, 0.5, 0.5, 0.5]


def test_tasks_are_checked_at_the_start(monkeypatch):
    with pytest.raises(ConfigError, match="reward.grader_processes = 0: graders of code, math can hang"):
        check_tasks(dataclasses.replace(CFG, grader_processes=0), {"math", "code", "gsm8k"})
    check_tasks(dataclasses.replace(CFG, grader_processes=0), {"gsm8k"})
    monkeypatch.setattr("r1train.reward.score.probe", lambda: Isolation("none", "pretended"))
    with pytest.raises(EnvironmentProblem, match="pretended"):
        check_tasks(CFG, {"code"})
    check_tasks(CFG, {"math"})
