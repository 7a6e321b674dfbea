"""Review by people: rows go out with a status to fill in, and come back accepted, rejected or edited."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from r1train.data.files import check_unique, read_rows, write_rows
from r1train.errors import DataError

PENDING, ACCEPT, EDIT, REJECT = "pending", "accept", "edit", "reject"
STATUSES = (PENDING, ACCEPT, EDIT, REJECT)
SHOWN = ("id", "task", "prompt", "response")
# Responses that stood in a row before today's: what was accepted, or written without a decision.
EARLIER = "earlier"


@dataclass(frozen=True)
class Reviewed:
    """Rows that people let through (an edited one with its new response), and how many had which status."""

    rows: list[dict]
    counts: dict[str, int]


def export_review(path: Path, rows: list[dict]) -> int:
    """Bring the file up to these rows: {status: pending, id, task, prompt, response, comment} each; returns how many.

    Decisions stay, also those on rows that are not among these today: a judge that answers this time, or a rewriting,
    changes which rows and responses there are. What is new comes behind, as pending. A row that was accepted with
    another response than today's is pending again, the accepted text kept in its list `earlier`. Raises DataError for
    a file that is malformed or has an unknown status or an id twice; it then stays as it is.
    """
    known = _read(path) if path.exists() else []
    today = {row["id"]: row["response"] for row in rows}
    again = {row["id"] for row in known if _is_of_another_response(row, today)}
    ids = {row["id"] for row in known}
    new = [_pending(row) for row in rows if row["id"] not in ids]
    if new or again:
        write_rows(path, [*(_again(row, today[row["id"]]) if row["id"] in again else row for row in known), *new])
    return len(new) + len(again)


def import_review(path: Path, rows: list[dict]) -> Reviewed:
    """The rows as the reviewed file decides; export_review has brought it up to them.

    Raises DataError: file missing, malformed, an unknown status, an id twice, rows that are still pending.
    """
    decided = {row["id"]: row for row in _read(path)}
    counts = Counter(decided[row["id"]]["status"] for row in rows)
    if counts[PENDING]:
        again = sum(decided[row["id"]]["status"] == PENDING and EARLIER in decided[row["id"]] for row in rows)
        why = f" ({again} of them had another response, see {EARLIER})" if again else ""
        raise DataError(
            f"{path}: {counts[PENDING]} of {len(rows)} rows are still pending{why}. "
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


def _read(path: Path) -> list[dict]:
    found = read_rows(path, {"id": str, "status": str, "response": str})
    unknown = sorted({row["status"] for row in found} - set(STATUSES))
    if unknown:
        raise DataError(f"{path}: unknown status {', '.join(unknown)}. Fix: one of {', '.join(STATUSES)}")
    check_unique([row["id"] for row in found], path)
    return found


def _pending(row: dict) -> dict:
    return {"status": PENDING, **{name: row[name] for name in SHOWN}, "comment": ""}


def _is_of_another_response(row: dict, today: dict[str, str]) -> bool:
    """An edited response is the person's own, and what was rejected stays out."""
    return row["status"] in (ACCEPT, PENDING) and row["response"] != today.get(row["id"], row["response"])


def _again(row: dict, response: str) -> dict:
    """The row as pending with today's response; no text that a person may have written is lost."""
    return {**row, "status": PENDING, "response": response, EARLIER: [*row.get(EARLIER, []), row["response"]]}
