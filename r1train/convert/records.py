"""What a conversion has finished, on disk: one record per group, so that a killed conversion continues."""

import json
import shutil
from pathlib import Path

from r1train.errors import CheckpointError
from r1train.log.atomic import write_atomically


class Records:
    """The folder .parts of an unfinished output: plan.json says of what, group_*.json what is done.

    A record names its group's file, the file's size and SHA-256, and what the conversion wants to keep of the group.
    """

    def __init__(self, out: Path):
        self.out = out
        self.folder = out / ".parts"

    def begin(self, plan: dict) -> None:
        """Start, or continue an unfinished conversion of exactly this plan.

        Raises CheckpointError when `out` holds something else.
        """
        path = self.folder / "plan.json"
        plan = json.loads(json.dumps(plan))
        if path.is_file():
            if json.loads(path.read_text()) != plan:
                raise CheckpointError(
                    f"{self.out} holds an unfinished conversion of another source or with other options. "
                    "Fix: repeat that command, or remove the folder, or write to another one"
                )
            return
        if self.out.is_dir() and any(self.out.iterdir()):
            raise CheckpointError(f"{self.out} is not empty. Fix: write to a new folder, or remove this one")
        self.folder.mkdir(parents=True)
        write_atomically(path, json.dumps(plan).encode())

    def write(self, group: int, record: dict) -> None:
        """After the group's file has its final name."""
        write_atomically(self.folder / f"group_{group:06d}.json", json.dumps(record).encode())

    def read(self, group: int) -> dict:
        return json.loads((self.folder / f"group_{group:06d}.json").read_text())

    def missing(self, groups: int) -> list[int]:
        """Groups without a record, or whose file is not as long as its record says."""
        return [group for group in range(groups) if not self._is_done(group)]

    def _is_done(self, group: int) -> bool:
        if not (self.folder / f"group_{group:06d}.json").is_file():
            return False
        record = self.read(group)
        path = self.out / record["file"]
        return path.is_file() and path.stat().st_size == record["bytes"]

    def end(self) -> None:
        """Drop the records and what killed attempts left."""
        shutil.rmtree(self.folder)
        for partial in self.out.glob("*.tmp"):
            partial.unlink()
