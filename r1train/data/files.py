"""Plain, gzip, xz and zstd text files: reading with clear errors, writing atomically."""

import gzip
import importlib
import io
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, cast

from r1train.errors import DataError, EnvironmentProblem, first_of


def _open_zstd(path: Path, mode: str) -> IO[bytes]:
    """A zstd file through pyarrow, which is heavy and optional, so it is imported where it is needed."""
    assert mode == "rb"
    return cast(IO[bytes], optional_pyarrow("pyarrow", path).CompressedInputStream(str(path), "zstd"))


def optional_pyarrow(module: str, path: Path) -> ModuleType:
    """pyarrow, or a module of it; EnvironmentProblem where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        what = f"{path}: reading {path.suffix} files needs pyarrow, which is not installed"
        raise EnvironmentProblem(f"{what}. Fix: pip install 'r1train[data]', or convert it to .jsonl.gz") from None


_OPENERS: dict[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zstd}


def bare_suffix(path: Path) -> str:
    """Suffix without the compression: `.jsonl` of `rows.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file. Raises DataError when it is missing or cannot be read or decompressed."""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Fix: write the path of an existing file") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). Fix: check its permissions and that it is complete"
        ) from None


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file with their ends, decompressed by suffix.

    Raises DataError when the file is missing, cannot be decompressed or is not UTF-8.
    """
    try:
        with open_bytes(path) as file:
            yield from io.TextIOWrapper(file, encoding="utf-8", newline="\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}). Fix: convert it to UTF-8") from None


def read_rows(path: Path, fields: Mapping[str, type]) -> list[dict]:
    """Rows of a jsonl file, each an object with at least `fields` of these types; strings must not be blank.

    Raises DataError when the file is missing or has no rows, and when rows are malformed (counted, a few named).
    """
    return parsed_rows(path, lambda line, _: parse_row(line, fields), needed=", ".join(fields))


def parsed_rows(path: Path, parse: Callable[[str, int], tuple[dict | None, str]], *, needed: str) -> list[dict]:
    """Rows of a jsonl file by parse(line, its number) -> (row, "") or (None, what is wrong); needed: a row's fields.

    Raises DataError as read_rows does.
    """
    rows, problems = [], []
    for number, line in enumerate(read_lines(path), start=1):
        row, problem = parse(line, number)
        if row is None:
            problems.append(f"line {number}: {problem}")
        else:
            rows.append(row)
    raise_malformed(path, problems, len(rows) + len(problems))
    if not rows:
        raise DataError(f"{path}: empty, it has no rows. Fix: write at least one row with {needed}")
    return rows


def parse_row(line: str, fields: Mapping[str, type]) -> tuple[dict | None, str]:
    """One jsonl line -> (row, "") or (None, what is wrong with it)."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg})"
    if not isinstance(row, dict):
        return None, "not a JSON object"
    for name, kind in fields.items():
        if name not in row:
            return None, f"field {name!r} is missing"
        value = row[name]
        if not isinstance(value, kind):
            return None, f"field {name!r} is {type(value).__name__}, not {kind.__name__}"
        if isinstance(value, str) and not value.strip():
            return None, f"field {name!r} is empty"
    return row, ""


def raise_malformed(path: Path, problems: list[str], total: int) -> None:
    """Raise DataError when there are problems: how many of `total` rows, and the first few of them."""
    if not problems:
        return
    what = f"{len(problems)} of {total} rows are malformed:{first_of(problems)}"
    raise DataError(f"{path}: {what}\nFix: correct or remove them")


def write_rows(path: Path, rows: Iterable[dict]) -> int:
    """Write rows as UTF-8 jsonl under a temporary name, then rename; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    count = 0
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def check_unique(ids: list[str], path: Path) -> None:
    """Raise DataError when an id occurs twice."""
    twice = sorted(name for name, count in Counter(ids).items() if count > 1)
    if twice:
        raise DataError(f"{path}: {len(twice)} ids occur more than once, for example {twice[:3]}. Fix: make ids unique")
