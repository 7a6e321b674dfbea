"""What an import is going to do, and every reason not to: nothing is written before all of it has been checked."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from r1train.config.schema_model import ModelConfig
from r1train.convert.hf_config import read_hf_config
from r1train.convert.names import AnyModel, Entry, entries, mtp_prefixes, stale_names, tied_head
from r1train.convert.source import HfFolder
from r1train.errors import CheckpointError

_LARGEST_FILE, _SMALLEST_FILE, _FILES = 2**30, 16 * 2**20, 64
_COMPARED_ELEMENTS = 4 * 2**20
RowRange = tuple[int, int, int]  # entry number, first row, last row + 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """max_memory_bytes: resident memory of all processes. dtype: of the checkpoint; None keeps it, FP8 becomes BF16.

    drop_mtp: import without the MTP layers (transformers drops them when it saves). verify: read everything again.
    """

    max_memory_bytes: int = 8 * 2**30
    workers: int = 2
    dtype: torch.dtype | None = None
    drop_mtp: bool = False
    verify: bool = False


@dataclass(frozen=True)
class ImportPlan:
    """What an import is going to do. groups: the row ranges of every output file; sizes: its bytes."""

    model: AnyModel
    entries: list[Entry]
    dtypes: dict[str, torch.dtype]
    groups: list[list[RowRange]]
    sizes: list[int]


def row_bytes(entry: Entry, dtype: torch.dtype) -> int:
    return math.prod(entry.shape[1:]) * dtype.itemsize


def group_rows(found: list[Entry], dtypes: dict[str, torch.dtype]) -> tuple[list[list[RowRange]], list[int]]:
    """Row ranges for files of similar size, and the bytes of each file; no limit changes them, so it resumes."""
    total = sum(math.prod(entry.shape) * dtypes[entry.key].itemsize for entry in found)
    limit = max(_SMALLEST_FILE, min(_LARGEST_FILE, total // _FILES))
    groups: list[list[RowRange]] = [[]]
    sizes = [0]
    for number, entry in enumerate(found):
        per_row, rows, start = row_bytes(entry, dtypes[entry.key]), entry.shape[0], 0
        while start < rows:
            if sizes[-1] >= limit:
                groups.append([])
                sizes.append(0)
            stop = min(rows, start + max(1, (limit - sizes[-1]) // per_row))
            # A tensor that fits into one file is not cut.
            if rows * per_row <= limit:
                stop = rows
            groups[-1].append((number, start, stop))
            sizes[-1] += (stop - start) * per_row
            start = stop
    return groups, sizes


def blocks(entry: Entry, start: int, stop: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Row ranges to hold at once. Gate and up are loaded apart by megatron-core, so no block holds rows of both."""
    edges = {start, stop}
    if entry.groups == 1:
        edges |= {run.ours for run in entry.runs() if start < run.ours < stop}
    for first, last in itertools.pairwise(sorted(edges)):
        for row in range(first, last, max_rows):
            yield row, min(last, row + max_rows)


def assemble(source: HfFolder, entry: Entry, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of our tensor from the rows of Hugging Face's."""
    found = []
    for run in entry.runs():
        first, last = max(start, run.ours), min(stop, run.ours + run.count)
        if first < last:
            shift = run.start - run.ours
            found.append(source.rows(entry.parts[run.part].name, first + shift, last + shift, dtype))
    return found[0] if len(found) == 1 else torch.cat(found)


def plan_import(hf_dir: Path, options: Options) -> tuple[ImportPlan, HfFolder, dict[str, Any]]:
    """Read config and headers and check everything; nothing is written.

    Returns the plan, the source and config.json's fields. Raises CheckpointError with all problems of the folder.
    """
    model, fields = read_hf_config(hf_dir / "config.json")
    source = HfFolder(hf_dir)
    depth = model.mtp_depth
    if options.drop_mtp and isinstance(model, ModelConfig):
        model = replace(model, mtp_depth=0)
    found = entries(model)
    may_be = stale_names(model) | tied_head(model)
    if options.drop_mtp:
        may_be |= {name for name in source.tensors if name.startswith(mtp_prefixes(model, depth=depth))}
    problems = source.problems(found, may_be=may_be)
    problems = problems or _unequal_copies(source, found, model)
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise CheckpointError(
            f"{hf_dir} does not fit its config.json, {len(problems)} problem(s):{lines}\nFix: {_hint(model, source)}"
        )
    dtypes: dict[str, torch.dtype] = {}
    for entry in found:
        kept = torch.float32 if entry.fp32 else options.dtype
        for part in entry.parts:
            dtype = kept or source.dtype(part.name)
            dtypes[entry.key] = torch.promote_types(dtypes.get(entry.key, dtype), dtype)
    return ImportPlan(model, found, dtypes, *group_rows(found, dtypes)), source, fields


def _hint(model: AnyModel, source: HfFolder) -> str:
    prefixes = mtp_prefixes(model, depth=model.mtp_depth)
    if prefixes and not any(name.startswith(prefixes) for name in source.tensors):
        return (
            f"config.json says num_nextn_predict_layers={model.mtp_depth}, but there is no tensor of an MTP layer "
            "(transformers drops them when it saves): --drop-mtp imports without them"
        )
    return "take the config.json and the files of one and the same model"


def _unequal_copies(source: HfFolder, found: list[Entry], model: AnyModel) -> list[str]:
    """Copies of embedding and head that differ from the original: one matrix of ours could not hold both."""
    pairs = [(part.name, copy) for entry in found for part in entry.parts for copy in part.copies]
    pairs += [(found[0].parts[0].name, tied) for tied in tied_head(model)]
    problems = []
    for name, copy in pairs:
        if copy not in source.tensors:
            continue
        rows, columns = source.tensors[name].shape
        if source.tensors[copy].shape != (rows, columns):
            problems.append(f"{copy} is a copy of {name} but has another shape")
            continue
        step = max(1, _COMPARED_ELEMENTS // columns)
        for row in range(0, rows, step):
            ranges = row, min(rows, row + step), torch.float32
            if not torch.equal(source.rows(name, *ranges), source.rows(copy, *ranges)):
                problems.append(f"{copy} has to equal {name}, and differs at or after row {row}")
                break
    return problems
