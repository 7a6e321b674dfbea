"""Grades samples of a benchmark: finds the answer, then exact numbers, math-verify, hidden tests or instructions."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from r1train.config.schema_eval import SuiteConfig, SuiteKind
from r1train.config.schema_rl import RewardConfig
from r1train.data.prompts import Prompt
from r1train.eval.extract import normal_form
from r1train.eval.instructions import Followed, follow
from r1train.eval.score import Outcome
from r1train.reward.answer import find_answer
from r1train.reward.base import Score
from r1train.reward.code import extract_code
from r1train.reward.format import format_score
from r1train.reward.grader import Grade, GradeItem, Grader
from r1train.reward.score import CODE_MARGIN_S
from r1train.rollout.types import Group, Sample

# Kind of suite -> task of reward/accuracy.py whose verifier decides. The others are decided here.
GRADER_TASK: dict[SuiteKind, str] = {
    "number": "gsm8k",
    "math": "math",
    "choice": "multiple_choice",
    "humaneval": "code",
    "mbpp": "code",
}
VOTING: tuple[SuiteKind, ...] = ("number", "math", "choice", "exact")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One sample's verdict. answer: as it was found, before any normalisation; followed: of ifeval only."""

    outcome: Outcome
    score: Score
    answer: str | None
    followed: Followed | None = None

    def to_row(self) -> dict[str, object]:
        """What is stored beside the sample for tools/show_rollouts.py."""
        return {**self.score.to_row(), "answer": self.answer}


def grade_groups(suite: SuiteConfig, groups: Sequence[Group], reward: RewardConfig) -> list[list[Judged]]:
    """Verdicts of every group's samples, in order. Graders run as reward says (processes, limits).

    Raises ConfigError for kinds that need grader processes where there are none, EnvironmentProblem for code where
    this host cannot isolate programs.
    """
    pairs = [(group.prompt, sample) for group in groups for sample in group.samples]
    answers = [find_answer(sample.text, suite.answer_from) for _, sample in pairs]
    verdicts: list[Judged] = []
    with Grader(processes=reward.grader_processes, timeout_s=reward.grader_timeout_s) as grader:
        at_once = [_at_once(suite.kind, prompt, answer) for (prompt, _), answer in zip(pairs, answers, strict=True)]
        for (prompt, _), answer, (grade, _) in zip(pairs, answers, at_once, strict=True):
            if grade is None:
                grader.submit(_item(suite.kind, prompt, answer or "", reward))
        graded = iter(grader.collect())
    for (_, sample), answer, (grade, followed) in zip(pairs, answers, at_once, strict=True):
        grade = next(graded) if grade is None else grade
        verdicts.append(_judged(suite.kind, sample, answer, grade, followed))
    left = iter(verdicts)
    return [[next(left) for _ in group.samples] for group in groups]


def program(code: str, prompt: Prompt) -> str:
    """What a HumanEval answer means as a program: a whole function goes behind the prompt's imports and helpers, a
    bare body behind the whole prompt. Other prompts: the code itself.
    """
    name = prompt.metadata.get("entry_point")
    if name is None:
        return code
    if f"def {name}(" in code:
        return prompt.metadata["head"] + code
    return prompt.metadata["prompt"] + _body(code)


def _body(code: str) -> str:
    """A function's body, indented; only its first line may have lost its indentation."""
    first, _, rest = code.partition("\n")
    if not first.startswith((" ", "\t")):
        first = "    " + first
        if any(line and not line[0].isspace() for line in rest.split("\n")):
            rest = textwrap.indent(rest, "    ")
    return f"{first}\n{rest}"


def _at_once(kind: SuiteKind, prompt: Prompt, answer: str | None) -> tuple[Grade | None, Followed | None]:
    """Verdicts that need no grader: no answer is wrong; texts are compared and instructions checked here."""
    if kind == "ifeval":
        followed = follow(answer or "", prompt.metadata["instruction_id_list"], prompt.metadata["kwargs"])
        return Grade(float(all(followed.strict)), None), followed
    if answer is None:
        return Grade(0.0, None), None
    if kind == "exact":
        same = normal_form(answer, latex=False) == normal_form(prompt.answer, latex=False)
        return Grade(float(same), None), None
    return None, None


def _item(kind: SuiteKind, prompt: Prompt, answer: str, reward: RewardConfig) -> GradeItem:
    entry: dict[str, object] = {"question": prompt.question, "answer": prompt.answer, "metadata": prompt.metadata}
    task = GRADER_TASK[kind]
    if task != "code":
        return GradeItem(task=task, answer=answer, entry=entry)
    entry["code"] = asdict(reward.code) | {"partial": False}
    limit_s = reward.code.total_s + CODE_MARGIN_S
    return GradeItem(task=task, answer=program(extract_code(answer), prompt), entry=entry, limit_s=limit_s)


def _judged(kind: SuiteKind, sample: Sample, answer: str | None, grade: Grade, followed: Followed | None) -> Judged:
    tagged = format_score(sample.text)
    parts = {"format": tagged} if grade.correct is None else {"accuracy": grade.correct, "format": tagged}
    votes = kind in VOTING and answer is not None
    return Judged(
        outcome=Outcome(
            correct=grade.correct == 1.0,
            formatted=tagged == 1.0,
            answer=normal_form(answer, latex=kind == "math") if votes and answer is not None else None,
            response_tokens=len(sample.tokens),
            truncated=sample.truncated,
            error=grade.error,
        ),
        score=Score(float("nan") if grade.correct is None else grade.correct, parts, grade.error),
        answer=answer,
        followed=followed,
    )


def instruction_rates(verdicts: Sequence[Judged]) -> dict[str, float]:
    """IFEval's other three numbers (pass@1 is prompt_strict): shares of prompts and of instructions; {} without any."""
    followed = [judged.followed for judged in verdicts if judged.followed is not None]
    if not followed:
        return {}
    strict = [verdict for one in followed for verdict in one.strict]
    loose = [verdict for one in followed for verdict in one.loose]
    return {
        "prompt_loose": sum(all(one.loose) for one in followed) / len(followed),
        "instruction_strict": sum(strict) / len(strict),
        "instruction_loose": sum(loose) / len(loose),
    }
