"""Cold-start examples of mixed quality, and worked examples as pre-training text.

Every cold-start answer is right; what differs is the thinking before it:
    steps   every operation written out               <think>4+7=+11 +11-3=+08</think><answer>8</answer>
    check   steps, then the last one looked at again  <think>4+7=+11 +11-3=+08 Check: +11-3=+08 yes.</think>...
    direct  no work at all                            <think>I see it.</think><answer>8</answer>
Each of them followed by _line ends with a line break, which says nothing about the answer: something to prefer.
The mixture is on purpose. A small model whose base has learnt the steps is right more often with `steps` than with
`direct`, because each written step is a small fact while the whole sum is not. After the cold start the policy thinks
in the shares of the data (TaskConfig.styles), so RL has something real to find: accuracy and response length rise
together as it moves to careful work, like the length curve of R1-Zero (R1 section 2.2). A base that has not learnt the
steps yet gives both styles the same low accuracy, and RL nothing to choose between: train it longer first.
"""

import math
from collections.abc import Callable

from r1train.config.schema_train import TaskConfig
from r1train.data.order import epoch_order
from r1train.data.problems import Problem
from r1train.data.solutions import solution_steps
from r1train.errors import DataError


def response(thinking: str, answer: str) -> str:
    """The response format of the whole project (R1 table 1)."""
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def _steps(problem: Problem) -> str:
    return " ".join(solution_steps(problem))


def _check(problem: Problem) -> str:
    return f"{_steps(problem)} Check: {solution_steps(problem)[-1]} yes."


def _direct(problem: Problem) -> str:
    return "I see it."


_STYLES: dict[str, Callable[[Problem], str]] = {"steps": _steps, "check": _check, "direct": _direct}
# Style -> its thinking, and what stands behind the answer.
STYLES = {
    f"{name}{suffix}": (style, end) for name, style in _STYLES.items() for suffix, end in (("", ""), ("_line", "\n"))
}


def styled_response(problem: Problem, style: str) -> str:
    """The right response to a problem in one of STYLES."""
    think, end = STYLES[style]
    return response(think(problem), problem.answer) + end


def cold_start_rows(problems: list[Problem], task: TaskConfig, *, seed: int) -> list[dict]:
    """Rows {id, task, prompt, response, style}, one per problem; styles in the shares of task.styles, up to rounding.

    Raises DataError when a style is unknown, the shares are below 0 or all 0, or the task has no written solutions.
    """
    if not problems:
        return []
    styles = _assigned_styles(task, len(problems), seed)
    return [
        {
            "id": problem.id,
            "task": problem.task,
            "prompt": problem.question,
            "response": styled_response(problem, style),
            "style": style,
        }
        for problem, style in zip(problems, styles, strict=True)
    ]


def _assigned_styles(task: TaskConfig, count: int, seed: int) -> list[str]:
    """One style per problem: counts by largest remainder, order shuffled."""
    unknown = sorted(set(task.styles) - set(STYLES))
    if unknown:
        raise DataError(
            f"task {task.name!r}: unknown styles {', '.join(unknown)}. Fix: styles among {', '.join(STYLES)}"
        )
    if min(task.styles.values(), default=-1) < 0 or sum(task.styles.values()) <= 0:
        raise DataError(f"task {task.name!r}: styles {task.styles} are not shares. Fix: numbers >= 0, one above 0")
    names = sorted(task.styles)
    counts = apportion([task.styles[name] for name in names], count)
    styles = [name for name, number in zip(names, counts, strict=True) for _ in range(number)]
    order = epoch_order(count, seed=seed, epoch=0, stream=f"styles/{task.name}")
    return [styles[index] for index in order]


def apportion(shares: list[float], total: int) -> list[int]:
    """Whole numbers that sum to total in proportion to shares (largest remainder; ties to the first)."""
    exact = [share / sum(shares) * total for share in shares]
    counts = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def worked_text(problem: Problem) -> str:
    """One worked solution as plain text: "4+7-3= : 4+7=+11 +11-3=+08 so 8"."""
    return f"{problem.question} : {_steps(problem)} so {problem.answer}"
