"""Grades samples of a benchmark: finds the answer, then exact numbers, math-verify, hidden tests or instructions."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType

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
from r1train.rollout.types import Sample

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


@dataclass(frozen=True)
class _Pending:
    """A sample whose verdict is known (grade), or will be the graders' next one (None)."""

    sample: Sample
    answer: str | None
    grade: Grade | None
    followed: Followed | None


class SuiteGrader:
    """Verdicts of a suite's samples, graded as they finish: a Watcher of the engine (rollout/engine.py).

    Holds grader processes, which run as reward says: use as a context manager. finished(), poll() and verdicts() raise
    ConfigError for kinds that need grader processes where there are none, EnvironmentProblem for code where this host
    cannot isolate programs.
    """

    def __init__(self, suite: SuiteConfig, reward: RewardConfig):
        self._suite, self._reward = suite, reward
        self._grader = Grader(processes=reward.grader_processes, timeout_s=reward.grader_timeout_s)
        self._pending: dict[tuple[int, int], _Pending] = {}

    def finished(self, place: int, prompt: Prompt, sample: Sample) -> None:
        answer = find_answer(sample.text, self._suite.answer_from)
        grade, followed = _at_once(self._suite.kind, prompt, answer)
        if grade is None:
            self._grader.submit(_item(self._suite.kind, prompt, answer or "", self._reward))
        self._pending[place, sample.index] = _Pending(sample, answer, grade, followed)

    def poll(self) -> None:
        self._grader.poll()

    def verdicts(self) -> dict[int, list[Judged]]:
        """Place of the prompt -> verdicts of its samples, in order of their index. Waits for the graders."""
        everything, self._pending = self._pending, {}
        graded = iter(self._grader.collect())
        judged = {
            key: _judged(self._suite.kind, one, next(graded) if one.grade is None else one.grade)
            for key, one in everything.items()
        }
        found: dict[int, list[Judged]] = defaultdict(list)
        for place, index in sorted(judged):
            found[place].append(judged[place, index])
        return dict(found)

    def __enter__(self) -> "SuiteGrader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._grader.close()


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


def _judged(kind: SuiteKind, one: _Pending, grade: Grade) -> Judged:
    sample, answer = one.sample, one.answer
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
            timed_out=grade.timed_out,
        ),
        score=Score(float("nan") if grade.correct is None else grade.correct, parts, grade.error, grade.timed_out),
        answer=answer,
        followed=one.followed,
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
