"""Compares the metrics of two runs step by step."""

import math
from collections.abc import Sequence
from typing import Any

IGNORED_PREFIX = "time/"


def first_difference(
    left: Sequence[dict[str, Any]], right: Sequence[dict[str, Any]], *, rtol: float | None, keys: Sequence[str] = ()
) -> str | None:
    """Describes the first step at which two runs differ, None where they do not.

    rtol None: values must be identical, bit for bit; else numbers may differ by rtol * the larger magnitude. keys:
    what to compare, empty for everything; keys starting with "time/" are wall-clock and never compared. A step or a
    key that only one run has is a difference.
    """
    for row_left, row_right in zip(left, right, strict=False):
        if row_left["step"] != row_right["step"]:
            return f"step {row_left['step']} against step {row_right['step']}"
        wanted = keys or [name for name in {**row_left, **row_right} if not name.startswith(IGNORED_PREFIX)]
        for name in wanted:
            if name not in row_left or name not in row_right:
                return f"step {row_left['step']}: {name} is missing in the {'first' if name in row_right else 'second'}"
            if not _same(row_left[name], row_right[name], rtol):
                return f"step {row_left['step']}: {name} = {row_left[name]!r} against {row_right[name]!r}"
    if len(left) != len(right):
        return f"{len(left)} steps against {len(right)}"
    return None


def means(rows: Sequence[dict[str, Any]], *, steps: int) -> list[dict[str, Any]]:
    """One row for every `steps` rows, the last one of what is left: the means of all numbers, at the last row's step.

    Curves of two layouts in bf16 differ by roundings from step to step, in such means by much less.
    """
    groups = [rows[start : start + steps] for start in range(0, len(rows), steps)]
    return [
        {
            name: value if name == "step" else sum(row[name] for row in group) / len(group)
            for name, value in group[-1].items()
            if all(isinstance(row.get(name), int | float) for row in group)
        }
        for group in groups
    ]


def _same(left: object, right: object, rtol: float | None) -> bool:
    if rtol is None or not isinstance(left, int | float) or not isinstance(right, int | float):
        return left == right
    return math.isclose(left, right, rel_tol=rtol, abs_tol=0.0)
