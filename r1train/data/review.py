"""Review by people: rows go out with a status to fill in, and come back accepted, rejected or edited."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from r1train.data.files import read_rows, write_rows
from r1train.errors import DataError

PENDING, ACCEPT, EDIT, REJECT = "pending", "accept", "edit", "reject"
STATUSES = (PENDING, ACCEPT, EDIT, REJECT)
SHOWN = ("id", "task", "prompt", "response")


@dataclass(frozen=True)
class Reviewed:
    """Rows that people let through (an edited one with its new response), and how many had which status."""

    rows: list[dict]
    counts: dict[str, int]


def export_review(path: Path, rows: list[dict]) -> int:
    """Write rows {status: pending, id, task, prompt, response, comment}; returns how many.

    A file that is there already is left alone: it may hold decisions.
    """
    if path.exists():
        return 0
    return write_rows(path, ({"status": PENDING, **{name: row[name] for name in SHOWN}, "comment": ""} for row in rows))


def import_review(path: Path, rows: list[dict]) -> Reviewed:
    """The rows as the reviewed file decides.

    Raises DataError: file missing, malformed, an unknown status, rows that are still pending, ids of other rows.
    """
    decided = {row["id"]: row for row in read_rows(path, {"id": str, "status": str, "response": str})}
    unknown = sorted({row["status"] for row in decided.values()} - set(STATUSES))
    if unknown:
        raise DataError(f"{path}: unknown status {', '.join(unknown)}. Fix: one of {', '.join(STATUSES)}")
    missing = [row["id"] for row in rows if row["id"] not in decided]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(rows)} rows are not in it, for example {missing[0]}. "
            "Fix: the file of this run, or delete it to review anew"
        )
    counts = Counter(decided[row["id"]]["status"] for row in rows)
    if counts[PENDING]:
        raise DataError(
            f"{path}: {counts[PENDING]} of {len(rows)} rows are still pending. "
            f"Fix: set status to {ACCEPT}, {EDIT} (and change the response) or {REJECT}, then start the stage again"
        )
    kept = []
    for row in rows:
        decision = decided[row["id"]]
        if decision["status"] == ACCEPT:
            kept.append(row)
        elif decision["status"] == EDIT:
            kept.append({**row, "response": decision["response"]})
    return Reviewed(kept, dict(counts))
