"""Documents from text, jsonl or the package's own data.

A text file holds documents separated by form feeds (none: one document); a jsonl file has one document per row, in
`text`. Either may be compressed (.gz, .xz, .zst; the last needs pyarrow). `builtin:text` and `builtin:gsm8k` ship with
the package; the prepare stage makes `builtin:worked` from problems (data/cold_start.py), `builtin:chats`
(data/chat_corpus.py) and `builtin:passkey` (data/passkey_corpus.py).
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from r1train.data.files import bare_suffix, parse_row, raise_malformed, read_lines, read_rows
from r1train.data.problem_files import plain_solution
from r1train.errors import DataError

BUILTIN_PREFIX = "builtin:"
SHIPPED = tuple(BUILTIN_PREFIX + name for name in ("text", "gsm8k"))
_GENERATED = tuple(BUILTIN_PREFIX + name for name in ("worked", "chats", "passkey"))


def asset(name: str) -> Path:
    """Path of a file shipped in r1train/assets."""
    return Path(str(resources.files("r1train") / "assets" / name))


def gsm8k_rows(split: str) -> list[dict]:
    """Shipped GSM8K rows of split `train` or `heldout`: id, question, solution (without calculator marks), answer."""
    rows = read_rows(asset(f"gsm8k_{split}.jsonl.gz"), {"id": str, "question": str, "solution": str, "answer": str})
    for row in rows:
        row["solution"] = plain_solution(row["solution"])
    return rows


def documents(source: str) -> Iterator[str]:
    """Documents of a file, or of builtin:text or builtin:gsm8k (train rows only).

    Raises DataError: missing file, unknown suffix or builtin name, malformed rows (counted, the first few named).
    """
    if source == BUILTIN_PREFIX + "text":
        yield from _text_documents(asset("text.txt.gz"))
    elif source == BUILTIN_PREFIX + "gsm8k":
        for row in gsm8k_rows("train"):
            yield f"{row['question']}\n{row['solution']}\nSo the answer is {row['answer']}."
    elif source.startswith(BUILTIN_PREFIX):
        raise DataError(f"corpus source {source!r}: {not_shipped(source)}. Fix: a file, or one of {', '.join(SHIPPED)}")
    elif bare_suffix(Path(source)) == ".jsonl":
        yield from _jsonl_documents(Path(source))
    elif bare_suffix(Path(source)) == ".txt":
        yield from _text_documents(Path(source))
    else:
        raise DataError(f"corpus source {source!r}: suffix not known. Fix: .txt or .jsonl, plain or .gz, .xz or .zst")


def not_shipped(source: str) -> str:
    """Why a builtin source that is none of SHIPPED cannot be read."""
    return "made by the prepare stage only" if source in _GENERATED else "the package ships no such documents"


def _text_documents(path: Path) -> Iterator[str]:
    """Form-feed separated documents, one in memory at a time; blank ones (ends of the file) are no documents."""
    lines: list[str] = []
    for line in read_lines(path):
        *ended, rest = line.split("\f")
        for part in ended:
            lines.append(part)
            if text := "".join(lines).strip():
                yield text
            lines = []
        lines.append(rest)
    if text := "".join(lines).strip():
        yield text


def _jsonl_documents(path: Path) -> Iterator[str]:
    problems, total = [], 0
    for total, line in enumerate(read_lines(path), start=1):  # noqa: B007 - the count is used after the loop
        row, problem = parse_row(line, {"text": str})
        if row is None:
            problems.append(f"line {total}: {problem}")
        else:
            yield row["text"]
    raise_malformed(path, problems, total)
