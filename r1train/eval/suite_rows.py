"""Rows of benchmark files -> question, reference answer and what the grader needs; one reader per kind of suite."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from r1train.config.schema_eval import SuiteKind
from r1train.errors import DataError
from r1train.eval.instructions import check_instructions
from r1train.reward.code import read_task
from r1train.reward.number import parse_number

QUESTION_FIELDS = ("question", "problem", "prompt", "text")
ID_FIELDS = ("id", "unique_id", "task_id", "key")


class RowProblem(ValueError):
    """What is wrong with one row."""


@dataclass(frozen=True)
class SuiteRow:
    """fields: what a template may name; answer: the reference; metadata: for the grader, stored with the samples."""

    fields: dict[str, str]
    answer: str
    metadata: dict[str, Any]


def read_suite_row(kind: SuiteKind, row: dict[str, Any]) -> SuiteRow:
    """One row of a suite of this kind. Raises RowProblem with what is wrong."""
    return _READERS[kind](row)


def row_id(row: dict[str, Any], *, suite: str, index: int) -> str:
    """<suite>/<the row's own id>, else <suite>/<index>."""
    own = next((row[name] for name in ID_FIELDS if isinstance(row.get(name), str | int)), index)
    return str(own) if str(own).startswith(f"{suite}/") else f"{suite}/{own}"


def _text(row: dict[str, Any], *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value
    raise RowProblem(f"no text in {' or '.join(repr(name) for name in names)}")


def _texts(row: dict[str, Any], name: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise RowProblem(f"{name!r} is no list of texts")
    return value


def _reference(row: dict[str, Any]) -> str:
    value = row.get("answer")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowProblem("'answer' is missing or blank")
    return value.strip()


def _number(row: dict[str, Any]) -> SuiteRow:
    # The original GSM8K files give the solution as the answer, with the number after ####.
    answer = _reference(row).rpartition("####")[2].strip()
    if parse_number(answer) is None:
        raise RowProblem(f"the answer {answer[:40]!r} is no number (kind math takes formulas)")
    return SuiteRow({"question": _text(row, *QUESTION_FIELDS)}, answer, {})


def _plain(row: dict[str, Any]) -> SuiteRow:
    return SuiteRow({"question": _text(row, *QUESTION_FIELDS)}, _reference(row), {})


def _choice(row: dict[str, Any]) -> SuiteRow:
    question, choices, answer = _text(row, *QUESTION_FIELDS), _texts(row, "choices"), _reference(row)
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    if answer not in letters:
        raise RowProblem(f"the answer {answer[:40]!r} is none of the letters {', '.join(letters)}")
    lines = "\n".join(f"{letter}) {choice}" for letter, choice in zip(letters, choices, strict=True))
    return SuiteRow({"question": question, "choices": lines}, answer, {"choices": choices})


def _humaneval(row: dict[str, Any]) -> SuiteRow:
    prompt, name, test = _text(row, "prompt"), _text(row, "entry_point"), _text(row, "test")
    head, found, _ = prompt.rpartition(f"def {name}(")
    if not found:
        raise RowProblem(f"the prompt does not begin a function {name!r}")
    metadata = {
        "tests": [{"snippet": f"{test}\ncheck({name})\n"}],
        "entry_point": name,
        "prompt": prompt,
        "head": head,
    }
    return SuiteRow({"question": prompt, "entry_point": name}, name, _judged(metadata))


def _mbpp(row: dict[str, Any]) -> SuiteRow:
    question, tests = _text(row, "text", "prompt"), _texts(row, "test_list")
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    if not isinstance(setup, str):
        raise RowProblem("'test_setup_code' is no text")
    snippets = [{"snippet": f"{setup}\n{test}\n"} for test in tests]
    return SuiteRow({"question": question, "tests": "\n".join(tests)}, tests[0], _judged({"tests": snippets}))


def _judged(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a code row, whose snippets the grader will take: refused there, they would end the evaluation."""
    try:
        read_task({"metadata": metadata})
    except DataError as error:
        raise RowProblem(str(error)) from None
    return metadata


def _ifeval(row: dict[str, Any]) -> SuiteRow:
    prompt, ids, kwargs = _text(row, "prompt"), _texts(row, "instruction_id_list"), row.get("kwargs")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids) or not all(isinstance(item, dict) for item in kwargs):
        raise RowProblem("'kwargs' must hold one object per instruction")
    # Published files fill absent arguments with null.
    given = [{name: value for name, value in item.items() if value is not None} for item in kwargs]
    problem = check_instructions(ids, given)
    if problem is not None:
        raise RowProblem(problem)
    metadata = {"instruction_id_list": ids, "kwargs": given}
    return SuiteRow({"question": prompt}, ", ".join(ids), metadata)


_READERS: dict[SuiteKind, Callable[[dict[str, Any]], SuiteRow]] = {
    "number": _number,
    "math": _plain,
    "exact": _plain,
    "choice": _choice,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "ifeval": _ifeval,
}
