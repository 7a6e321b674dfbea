"""Stored samples of a rejection-sampling run and of its parts, read back in the order of the prompts."""

from pathlib import Path

from r1train.errors import DataError
from r1train.reward.candidate import Candidate, prompt_from_row
from r1train.rollout.types import read_rows

FOLDER = "samples"
SETTINGS = "settings.json"


def sample_folders(run_dir: Path) -> list[Path]:
    """Folders with samples: the run's own, and those of its parts (run folders inside it)."""
    return sorted(folder for folder in (run_dir / FOLDER, *run_dir.glob(f"*/{FOLDER}")) if folder.is_dir())


def read_samples(run_dir: Path) -> dict[int, list[Candidate]]:
    """Candidates of every finished prompt by its place, in order. Raises DataError for a prompt that stands twice."""
    found: dict[int, list[Candidate]] = {}
    for folder in sample_folders(run_dir):
        for path in sorted(folder.glob("from_*.jsonl")):
            for row in read_rows(path):
                place, candidates = prompt_from_row(row)
                if place in found:
                    what = f"prompt {candidates[0].prompt_id} was sampled before"
                    raise DataError(f"{path}: {what}. Fix: delete one of the two files and start the stage again")
                found[place] = candidates
    return dict(sorted(found.items()))
