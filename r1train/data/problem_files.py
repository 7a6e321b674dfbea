"""Problems from a jsonl file of questions and answers, in the rows that a benchmark's own files have."""

import re
from pathlib import Path

from r1train.data.files import check_unique, parse_row, parsed_rows

_QUESTIONS = ("question", "problem")
_CALCULATOR = re.compile(r"<<[^>]*>>")


def problem_rows(path: Path) -> list[dict[str, str]]:
    """Rows {"id", "question", "answer"} and, where the file has it, a plain "solution"; no id: the line's number.

    An answer in GSM8K's own form is what stands after "####". Raises DataError: file missing, empty or malformed, an id
    twice.
    """
    rows = parsed_rows(path, _row, needed="question and answer")
    check_unique([row["id"] for row in rows], path)
    return rows


def plain_solution(solution: str) -> str:
    """A solution of GSM8K: "<<48/2=24>>" is an annotation for a calculator tool and "#### 24" repeats the answer."""
    return _CALCULATOR.sub("", solution).split("####")[0].strip()


def _row(line: str, number: int) -> tuple[dict[str, str] | None, str]:
    row, problem = parse_row(line, {"answer": str})
    if row is None:
        return None, problem
    name = next((name for name in _QUESTIONS if isinstance(row.get(name), str) and row[name].strip()), None)
    if name is None:
        return None, f"no text in any of the fields {', '.join(_QUESTIONS)}"
    answer = row["answer"].rpartition("####")[2].strip()
    found = {"id": str(row.get("id", number)), "question": row[name], "answer": answer}
    solution = row.get("solution")
    return found | ({"solution": plain_solution(solution)} if isinstance(solution, str) else {}), ""
