"""The finished groups of a rollout that is under way, on disk: a killed run samples the rest only."""

import json
from dataclasses import asdict
from pathlib import Path

from r1train.data.prompts import Prompt
from r1train.log.atomic import write_atomically
from r1train.rollout.checksum import Sums
from r1train.rollout.engine import SamplingParams
from r1train.rollout.types import Group, group_from_row, group_to_row


class Journal:
    """One rank's groups of one rollout, appended as they finish; remove() it when the rollout is complete.

    The first line says what they were sampled with: parameters, policy version and weights. A file that was written
    with anything else is replaced, so what is found is what this rank would sample.
    """

    def __init__(self, path: Path, params: SamplingParams, *, policy_version: int, weights: Sums):
        """weights: sums over this rank's weights (rollout/checksum.py)."""
        self._path = path
        header = {"params": asdict(params), "policy_version": policy_version, "weights": weights}
        rows = _whole_rows(path)
        kept = rows[1:] if rows and rows[0] == json.loads(json.dumps(header)) else []
        self._found = {(row["attempt"], row["place"]): row for row in kept}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in [header, *kept]))
        self._file = path.open("a", encoding="utf-8")

    def found(self, attempt: int) -> dict[int, str]:
        """Place -> prompt id of the groups of this try that were there at the start."""
        return {place: row["prompt"]["id"] for (of, place), row in self._found.items() if of == attempt}

    def group(self, attempt: int, place: int, prompt: Prompt) -> Group:
        """A group that was found, with the prompt that is asked now."""
        return Group(prompt=prompt, samples=group_from_row(self._found[attempt, place]).samples)

    def add(self, attempt: int, place: int, group: Group) -> None:
        """One more group is finished; it is on disk when this returns."""
        row = {"attempt": attempt, "place": place, **group_to_row(group)}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def remove(self) -> None:
        """The rollout is complete and stored elsewhere."""
        self._file.close()
        self._path.unlink()


def _whole_rows(path: Path) -> list[dict]:
    """The rows up to the first that a kill cut off; none where there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
        if not line.endswith("\n"):
            break
        rows.append(json.loads(line))
    return rows
