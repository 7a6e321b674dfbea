"""A benchmark file -> prompts, rendered by the suite's template."""

import json
import re
from pathlib import Path

from r1train.config.schema_eval import SuiteConfig
from r1train.data.chat import prompt_tokens
from r1train.data.files import check_unique, raise_malformed, read_lines
from r1train.data.prompts import Prompt
from r1train.data.tokenizer import Tokenizer
from r1train.errors import DataError
from r1train.eval.suite_rows import RowProblem, SuiteRow, read_suite_row, row_id

# config/check_eval.py makes sure that the kind has these fields.
_FIELD = re.compile(r"\{([a-z_]+)\}")


def load_suite(suite: SuiteConfig, tokenizer: Tokenizer, *, max_prompt_tokens: int) -> list[Prompt]:
    """The suite's first `problems` prompts in file order; their task is the suite's name.

    Raises DataError: file missing, empty or malformed (all rows are looked at), an id twice, a prompt
    longer than max_prompt_tokens.
    """
    path = Path(suite.path)
    rows, problems = _rows(suite, path)
    raise_malformed(path, problems, len(rows) + len(problems))
    if not rows:
        raise DataError(f"{path}: empty, suite {suite.name} has no problems. Fix: another file, or leave the suite out")
    check_unique([name for name, _ in rows], path)
    prompts = [_prompt(suite, tokenizer, name, row) for name, row in rows[: suite.problems]]
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    if len(longest.token_ids) > max_prompt_tokens:
        count = sum(len(prompt.token_ids) > max_prompt_tokens for prompt in prompts)
        raise DataError(
            f"{path}: {count} of {len(prompts)} prompts of suite {suite.name} are longer than {max_prompt_tokens} "
            f"tokens, the longest is {longest.id} with {len(longest.token_ids)}. Fix: its max_prompt_tokens"
        )
    return prompts


def _rows(suite: SuiteConfig, path: Path) -> tuple[list[tuple[str, SuiteRow]], list[str]]:
    rows: list[tuple[str, SuiteRow]] = []
    problems: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise RowProblem("not a JSON object")
            rows.append((row_id(row, suite=suite.name, index=number - 1), read_suite_row(suite.kind, row)))
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg})")
        except RowProblem as error:
            problems.append(f"line {number}: {error}")
    return rows, problems


def _prompt(suite: SuiteConfig, tokenizer: Tokenizer, name: str, row: SuiteRow) -> Prompt:
    question = _FIELD.sub(lambda match: row.fields[match.group(1)], suite.template)
    return Prompt(name, suite.name, question, row.answer, row.metadata, tuple(prompt_tokens(tokenizer, question)))
