"""Accuracy: does the extracted answer solve the problem? One verifier per kind of task.

Verifiers are imported when the first answer of their kind comes: a run pays start-up time (reasoning_gym 1 s,
math_verify 0.4 s) for the tasks it has, and no more.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from r1train.config.schema_reward import CodeConfig
from r1train.errors import DataError
from r1train.reward.choice import choice_accuracy
from r1train.reward.gym import MAY_HANG, OWN, READABLE, REFUSED, sorting_entry
from r1train.reward.number import number_accuracy

# Reference answers are numbers: decided by exact arithmetic alone.
NUMBER_TASKS = frozenset({"gsm8k"})
# Reference answers are LaTeX: math-verify decides, which can hang on hostile input.
MATH_TASKS = frozenset({"math", "aime24", "amc23"})
# Reference answers are letters of options.
CHOICE_TASKS = frozenset({"multiple_choice", "gpqa_diamond", "mmlu"})
# Answers are programs, run against hidden tests in the sandbox (reward/code.py).
CODE_TASKS = frozenset({"code"})
# Nothing to verify: writing, advice, translation. Format, language and reward models make their reward.
OPEN_TASKS = frozenset({"general"})
OWN_TASKS = NUMBER_TASKS | MATH_TASKS | CHOICE_TASKS | CODE_TASKS | OPEN_TASKS

Verifier = Callable[[str, dict[str, Any]], float]


def verify(task: str, answer: str, entry: dict[str, Any]) -> float:
    """1.0 when `answer` solves the problem, else 0.0; for code, where the config says so, the share of passed tests.

    task: one of the sets above, OPEN_TASKS apart, or a reasoning-gym data set, of which some have verifiers of our own
    (reward/gym.py: no answer is ever run outside the sandbox); entry: {"question", "answer",
    "metadata"}, for code also "code", the fields of CodeConfig.
    Raises DataError for an unknown task or a reference answer that does not suit it, and whatever the verifier raises.
    Runs as long as the verifier does: reward/grader.py puts a limit on it.
    """
    return verifier_of(task)(answer, entry)


@cache
def verifier_of(task: str) -> Verifier:
    """The verifier of a task, its packages imported. Raises DataError for an unknown task and for OPEN_TASKS."""
    if task in OPEN_TASKS:
        raise DataError(f"task {task!r} has nothing to verify. Fix: a task with a verifier where answers are graded")
    if task in NUMBER_TASKS:
        return lambda answer, entry: number_accuracy(answer, entry["answer"])
    if task in MATH_TASKS:
        from r1train.reward.math_answer import math_accuracy  # noqa: PLC0415 - start-up time, see above

        return lambda answer, entry: math_accuracy(answer, entry["answer"])
    if task in CHOICE_TASKS:
        return lambda answer, entry: choice_accuracy(answer, entry["answer"], entry["metadata"].get("choices"))
    if task in CODE_TASKS:
        from r1train.reward.code import code_score  # noqa: PLC0415 - the sandbox is for tasks that need it

        return lambda answer, entry: code_score(answer, entry, CodeConfig(**entry["code"]))
    if task in OWN:
        own = OWN[task]
        return lambda answer, entry: 1.0 if own(answer, entry) else 0.0
    return _package_verifier(task)


def _package_verifier(task: str) -> Verifier:
    """The scorer that reasoning-gym has for a data set; what may reach it is in reward/gym.py."""
    # One data set cannot be imported alone: the package imports all of them (measured: 1 s either way).
    from reasoning_gym import get_score_answer_fn  # noqa: PLC0415 - start-up time, see above

    try:
        if task in REFUSED:
            raise ValueError(task)
        score_answer = get_score_answer_fn(task)
    except ValueError as error:
        known = sorted(OWN_TASKS)
        raise DataError(f"unknown task {task!r}. Fix: name a reasoning-gym data set or one of {known}") from error
    readable = READABLE.get(task)

    def accuracy(answer: str, entry: dict[str, Any]) -> float:
        if readable is not None and not readable.fullmatch(answer.strip()):
            return 0.0
        # Some verifiers pay a little for a near miss; only a full solution is correct.
        return 1.0 if score_answer(answer, sorting_entry(entry) if task == "number_sorting" else entry) == 1.0 else 0.0

    return accuracy


def needs_process(task: str) -> bool:
    """Whether the task's verifier may hang, so that it must run in a killable process."""
    return task in MATH_TASKS | CODE_TASKS | MAY_HANG
