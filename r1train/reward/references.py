"""Whether the answers to problems can be graded at all: looked at before anything is generated."""

from collections.abc import Collection, Iterable
from typing import Any, Protocol

from r1train.errors import DataError, EnvironmentProblem, first_of
from r1train.reward.accuracy import CHOICE_TASKS, CODE_TASKS, NUMBER_TASKS, OWN_TASKS, verifier_of
from r1train.reward.choice import check_option
from r1train.reward.code import NO_COMPILER, read_task
from r1train.reward.isolation import compiler
from r1train.reward.number import reference_number


class Referenced(Protocol):
    """What a problem, a prompt and a row of a prompt file have in common."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def metadata(self) -> dict[str, Any]: ...


def check_references(problems: Iterable[Referenced], *, place: str, languages: Collection[str] | None = None) -> None:
    """Raises DataError that counts the problems at which scoring would stop the run, and names a few of them.

    place: the file or key that they are from. languages: those that metadata may ask for, None where nobody looks.
    Exact for numbers, options and the tests of code. A formula that math-verify cannot read, and metadata that a scorer
    of reasoning-gym misses, cost their sample and stop nothing: they are not looked at, since that would take a
    verifier's time. 100,000 problems take about a second.
    """
    found, total = [], 0
    for problem in problems:
        total += 1
        try:
            _check(problem, languages)
        except DataError as error:
            found.append(f"{problem.id} (task {problem.task}): {error}")
    if found:
        raise DataError(
            f"{place}: {len(found)} of {total} problems cannot be graded:{first_of(found)}\n"
            "Fix: correct or remove them, or give them the task that their answers suit"
        )


def check_task_names(tasks: Iterable[str], *, place: str) -> None:
    """Raises DataError for a task without a verifier. Imports reasoning_gym (1 s) where one is not our own."""
    for task in sorted(set(tasks) - OWN_TASKS):
        try:
            verifier_of(task)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None


def check_compiler(problems: Iterable[Referenced], *, place: str) -> None:
    """Raises EnvironmentProblem where answers would be C++ and this host, which will grade them, has no compiler."""
    wanted = [one.id for one in problems if one.task in CODE_TASKS and one.metadata.get("code_language") == "cpp"]
    if wanted and compiler() is None:
        what = f"{place}: {len(wanted)} problems ask for C++ (the first is {wanted[0]}), but {NO_COMPILER}"
        raise EnvironmentProblem(f"{what}. Fix: install g++ (apt install g++), or remove them")


def _check(problem: Referenced, languages: Collection[str] | None) -> None:
    language = problem.metadata.get("language")
    if languages is not None and language is not None and language not in languages:
        known = ", ".join(languages)
        raise DataError(f"metadata language = {language!r} is not known. Fix: one of {known}")
    if problem.task in NUMBER_TASKS:
        reference_number(problem.answer)
    elif problem.task in CHOICE_TASKS:
        check_option(problem.answer, problem.metadata.get("choices"))
    elif problem.task in CODE_TASKS:
        read_task({"metadata": problem.metadata})
