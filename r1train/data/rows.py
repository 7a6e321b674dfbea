"""Raw rows of jsonl, parquet and text files, in parts of bounded size: what one worker of tokenize_corpus takes.

Nothing is decoded or checked here, so that one reader can feed many workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from r1train.data.documents import BUILTIN_PREFIX, SHIPPED, documents, not_shipped
from r1train.data.files import bare_suffix, open_bytes, optional_pyarrow, parse_row
from r1train.errors import DataError

PART_BYTES = 8 << 20
# A document above this would take a worker beyond a gigabyte; it is counted as a bad row.
MAX_ROW_BYTES = 64 << 20
_PARQUET_ROWS = 256
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """data: UTF-8, a JSON object (is_json) or the document itself; None for a null. number: line or row, from 1."""

    source: str
    number: int
    data: bytes | None
    is_json: bool

    @property
    def place(self) -> str:
        return f"{self.source}:{self.number}"


@dataclass(frozen=True)
class Part:
    """Rows that are tokenised together. index: from 0 in input order; row_bytes: of their data."""

    index: int
    rows: list[Row]
    row_bytes: int


def read_parts(sources: list[str], text_field: str, part_bytes: int = PART_BYTES) -> Iterator[Part]:
    """All rows of all sources in order, cut by their own sizes only, so the same inputs always give the same parts.

    Raises DataError for a source that is missing, of unknown kind, cannot be decompressed, or lacks the column.
    """
    rows: list[Row] = []
    size, index = 0, 0
    for source in sources:
        for row in _rows(source, text_field):
            rows.append(row)
            size += len(row.data or b"")
            if size >= part_bytes:
                yield Part(index, rows, size)
                rows, size, index = [], 0, index + 1
    if rows:
        yield Part(index, rows, size)


def expected_bytes(sources: list[str]) -> int | None:
    """Row bytes that read_parts will give in all, or None where that is known only at the end."""
    plain = [Path(source) for source in sources if source.endswith((".jsonl", ".txt"))]
    return sum(path.stat().st_size for path in plain) if len(plain) == len(sources) else None


def check_sources(sources: list[str]) -> None:
    """Raise DataError for every source that is missing, empty or of a kind that is not read here."""
    problems = []
    for source in sources:
        if source.startswith(BUILTIN_PREFIX):
            if source not in SHIPPED:
                problems.append(f"{source}: {not_shipped(source)}; {' and '.join(SHIPPED)} can be read here")
            continue
        path = Path(source)
        if not path.is_file():
            problems.append(f"{source}: no such file")
        elif path.stat().st_size == 0:
            problems.append(f"{source}: empty")
        elif bare_suffix(path) not in (".jsonl", ".txt", ".parquet"):
            problems.append(f"{source}: not .jsonl or .txt (plain, .gz, .xz or .zst) or .parquet")
    if problems or not sources:
        shown = "\n  - ".join(["", *(problems or ["no input at all"])])
        raise DataError(f"{len(problems)} of {len(sources)} inputs cannot be read:{shown}\nFix: correct the paths")


def row_text(row: Row, text_field: str) -> tuple[str, str]:
    """(text, "") of a good row; ("", what is wrong) of a bad one."""
    if row.data is None:
        return "", f"{text_field!r} is null"
    if len(row.data) > MAX_ROW_BYTES:
        return "", f"{len(row.data)} bytes, more than {MAX_ROW_BYTES}; split the document"
    try:
        text = row.data.decode("utf-8")
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 ({error.reason} at byte {error.start})"
    if row.is_json:
        try:
            found, problem = parse_row(text, {text_field: str})
        except RecursionError:
            return "", "JSON nested too deeply"
        if found is None:
            return "", problem
        text = found[text_field]
    if not text.strip():
        return "", "no text"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "", "half of a surrogate pair, which is no character"
    return text, ""


def _rows(source: str, text_field: str) -> Iterator[Row]:
    path = Path(source)
    if source.startswith(BUILTIN_PREFIX):
        for number, text in enumerate(documents(source), start=1):
            yield Row(source, number, text.encode(), False)
    elif bare_suffix(path) == ".parquet":
        yield from _parquet_rows(path, text_field)
    elif bare_suffix(path) == ".jsonl":
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                yield Row(source, number, line, True)
    else:
        yield from _text_rows(path)


def _text_rows(path: Path) -> Iterator[Row]:
    """Documents between form feeds, each with the line it begins in; blank ones are no documents."""
    with open_bytes(path) as file:
        kept, number = b"", 1
        while block := file.read(_COPY_BYTES):
            *ended, kept = (kept + block).split(b"\f")
            for text in ended:
                if text.strip():
                    yield Row(str(path), number, text.strip(), False)
                number += text.count(b"\n")
        if kept.strip():
            yield Row(str(path), number, kept.strip(), False)


def _parquet_rows(path: Path, text_field: str) -> Iterator[Row]:
    arrow, parquet = optional_pyarrow("pyarrow", path), optional_pyarrow("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            kinds = {field.name: str(field.type) for field in file.schema_arrow}
            if kinds.get(text_field) not in ("string", "large_string"):
                have = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
                raise DataError(f"{path}: no text column {text_field!r}; it has {have}. Fix: --text-field")
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
                for value in batch.column(0).cast(arrow.large_binary()).to_pylist():
                    number += 1
                    yield Row(str(path), number, value, False)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Fix: check that it is complete") from None
