"""Evaluation agrees with a count by hand on 50 stored samples per task, and with plain arithmetic written here.

hand_marked.jsonl: six benchmark forms, each sample's mark decided by a person; its five problems of HumanEval are
OpenAI's (MIT licence). tiny_samples.jsonl: samples that the tiny run stored, with its scores.
"""

import json
import re
from pathlib import Path

import pytest

from r1train.config.schema import RunConfig
from r1train.data.prompts import Prompt
from r1train.eval.benchmark import suite_report
from r1train.eval.generate import Target
from r1train.eval.suites import load_suite
from r1train.reward.jail import probe
from r1train.reward.score import Scorer

HERE = Path(__file__).parent
MARKED = {task["suite"]: task for task in map(json.loads, (HERE / "hand_marked.jsonl").read_text().splitlines())}
# Right ones among the 50, counted by hand.
RIGHT = {"gsm8k": 24, "math500": 23, "choice": 24, "code": 21, "humaneval": 26, "ifeval": 23}


@pytest.mark.parametrize("name", RIGHT)
def test_marks_and_pass_at_1(name: str, suite_file, tokenizer, group_of, grade_groups, tmp_path: Path):
    task = MARKED[name]
    if task["kind"] in ("mbpp", "humaneval") and probe().backend == "none":
        pytest.skip("this host cannot isolate programs")
    problems = task["problems"]
    suite = suite_file(
        task["kind"], [one["row"] for one in problems], name=name, answer_from=tuple(task["answer_from"])
    )
    prompts = load_suite(suite, tokenizer, max_prompt_tokens=600)
    groups = [
        group_of(prompt, [text for text, _ in one["samples"]]) for prompt, one in zip(prompts, problems, strict=True)
    ]
    judged = grade_groups(suite, groups)
    found = [
        [text, int(one.outcome.correct)]
        for problem, verdicts in zip(problems, judged, strict=True)
        for (text, _), one in zip(problem["samples"], verdicts, strict=True)
    ]
    marks = [sample for problem in problems for sample in problem["samples"]]
    assert [pair for pair in zip(found, marks, strict=True) if pair[0] != pair[1]] == []
    assert len(marks) == 50 and sum(mark for _, mark in marks) == RIGHT[name]
    assert not any(one.outcome.error for verdicts in judged for one in verdicts)
    report = suite_report(suite, prompts, judged, target=Target(tmp_path, "c", policy_version=1), key="k")
    assert report.pass_at_1 == pytest.approx(RIGHT[name] / 50)


def by_arithmetic(question: str, text: str) -> int:
    """1 where the text between the only answer tags is the value of a sum such as 4+7-3=."""
    assert re.fullmatch(r"-?\d([+-]-?\d)+=", question), question
    value = sum(int(term.replace("+-", "-").replace("--", "+")) for term in re.findall(r"^-?\d|[+-]-?\d", question))
    answers = re.findall(r"<answer>(.*?)</answer>", text)
    return int(len(answers) == 1 and answers[0].strip() == str(value))


@pytest.mark.parametrize(("question", "value"), [("4+7-3=", 8), ("2+4-9=", -3), ("5--3+1=", 9), ("5+-3=", 2)])
def test_the_arithmetic(question: str, value: int):
    assert by_arithmetic(question, f"<think>t</think><answer>{value}</answer>") == 1
    assert by_arithmetic(question, f"<think>t</think><answer>{value + 1}</answer>") == 0
    assert by_arithmetic(question, f"<answer>{value}</answer><answer>{value}</answer>") == 0


def test_samples_of_the_tiny_run(cfg: RunConfig):
    rows = [json.loads(line) for line in (HERE / "tiny_samples.jsonl").read_text().splitlines()]
    expected = [by_arithmetic(row["question"], row["text"]) for row in rows]
    with Scorer(cfg.reward) as scorer:
        scores = scorer.score([(_prompt(row), row["text"]) for row in rows])
    assert [score.parts["accuracy"] for score in scores] == expected
    assert [row["score"]["parts"]["accuracy"] for row in rows] == expected
    assert (len(rows), sum(expected)) == (50, 23)


def _prompt(row: dict) -> Prompt:
    return Prompt(row["id"], row["task"], row["question"], row["answer"], row["metadata"], (0,))
